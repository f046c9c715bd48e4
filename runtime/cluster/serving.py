"""The server of models on Ray Serve: the same app, in as many replicas as the load asks for."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any

from deploykit.errors import BackendError, import_extra
from deploykit.runtime.cluster.scaling import APPLICATION, Scaling, autoscaling
from deploykit.runtime.serve.core.options import ServeOptions
from deploykit.runtime.serve.core.registry import Loader, sources_of

__all__ = ["application", "serving"]


def application(words: Sequence[str], load: Loader, options: ServeOptions, scaling: Scaling) -> Any:
    """Return the application for Ray Serve.

    Args:
        words: the models, as of :func:`deploykit.runtime.serve.core.registry.sources_of`; each machine must find them.
        load: opens a model, in each replica; it can be pickled.
        options: those of the server; where it listens is Ray's matter.
        scaling: the replicas.

    Raises:
        UsageError: two models have one name. MissingDependencyError: Ray is not installed.
    """
    sources = sources_of(words)
    serve = import_extra("ray.serve", "cluster")

    def build() -> Any:
        from deploykit.runtime.serve.app import create_app
        from deploykit.runtime.serve.core.registry import Registry

        return create_app(Registry(sources, load, options))  # it starts when the models are open, and then is ready

    @serve.ingress(build)
    class Models:
        """The app in one replica."""

    deployment = serve.deployment(
        name=APPLICATION,
        autoscaling_config=autoscaling(scaling),
        max_ongoing_requests=options.queue,
        ray_actor_options={"num_cpus": scaling.cpus, "num_gpus": scaling.gpus},
        graceful_shutdown_timeout_s=options.drain,
    )(Models)
    return deployment.bind()


@contextlib.contextmanager
def serving(app: Any, options: ServeOptions) -> Iterator[str]:
    """Serve an application on the cluster that is connected, while the context lasts; yield its address.

    Raises:
        BackendError: it cannot be started, as where a model cannot be opened.
    """
    serve = import_extra("ray.serve", "cluster")
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    try:
        serve.start(proxy_location="HeadOnly", http_options={"host": options.host, "port": options.port})
        serve.run(app, name=APPLICATION, route_prefix="/")
    except (RuntimeError, ValueError, OSError) as e:
        serve.shutdown()
        raise BackendError(f"Ray Serve did not start the models: {' '.join(str(e).split())[-400:]}") from e
    try:
        yield f"http://{options.host}:{options.port}"
    finally:
        serve.shutdown()
