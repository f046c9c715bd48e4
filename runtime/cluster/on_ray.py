"""Workers as actors of Ray Data, on this machine or on the machines of a cluster. Ray replaces those that die."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from deploykit.errors import BackendError, DeployError, MissingDependencyError, UsageError, import_extra, installing
from deploykit.numerals import typed_number
from deploykit.runtime.cluster.work import Attempt, Done, Task, Work, Worker
from deploykit.runtime.cores import usable_cores

__all__ = ["LOCAL", "Resources", "connected", "on_ray"]

LOCAL = "local"
"""The address that starts Ray on this machine, and ends it with the run."""

LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Set to 0, Ray listens on the loopback interface alone, on Linux too; else on all interfaces of the machine."""

OBJECT_STORE = 200_000_000  # bytes of shared memory for a Ray of this machine: only paths and documents pass through it
ANSWER = 10.0  # seconds in which the head of a cluster answers
RETRIES = 2  # of a part whose worker died
NO_PROGRESS = 24 * 3600  # seconds that a part may take


@dataclass(frozen=True)
class Resources:
    """What the workers of a run have.

    Attributes:
        workers: how many there are; None: as many as the cluster has room for.
        cpus: cores of each.
        gpus: GPUs of each; a fraction shares one.
    """

    workers: int | None = None
    cpus: int = 1
    gpus: float = 0.0


@contextlib.contextmanager
def connected(address: str, resources: Resources) -> Iterator[ModuleType]:
    """Connect to a cluster of Ray, or start one on this machine that listens on loopback alone, while the context
    lasts.

    Args:
        address: ``local``; ``auto``, the cluster that this machine is a part of; or ``HOST:PORT`` of its head.
        resources: what a Ray of this machine is to have room for.

    Raises:
        MissingDependencyError: Ray is not installed. BackendError: there is no cluster at the address.
        UsageError: Ray was imported in a way in which it does not listen on loopback alone.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to Ray's makers
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # workers without a GPU leave CUDA's choice alone
    room: dict[str, Any] = {}
    if address == LOCAL:
        if sys.modules.get("ray") is not None and os.environ.get(LOOPBACK) != "0":  # which its import reads
            raise UsageError(
                f"Ray was imported before, and would listen on every interface of this machine: set {LOOPBACK}=0 "
                "before its import, or connect to a cluster that runs"
            )
        os.environ[LOOPBACK] = "0"
        workers = resources.workers or max(1, usable_cores()[0] // resources.cpus)
        room = {
            "num_cpus": workers * resources.cpus, "include_dashboard": False, "object_store_memory": OBJECT_STORE,
        }  # fmt: skip
    elif address != "auto":
        _check_answers(address)
    ray = import_extra("ray", "cluster")
    if not hasattr(ray, "init"):  # a folder called ray lies where Python looks, as in /tmp, where Ray has one
        raise MissingDependencyError(f"Ray is required here but is not installed: {installing('cluster')}")
    logging.getLogger("ray").setLevel(logging.ERROR)  # else it tells what it starts, and where its documentation is
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False, **room)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as e:
        raise BackendError(f"no Ray was found or started at {address}: {e}") from e
    if before is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)  # Ray has put its own there, which prints a stack
    try:
        with contextlib.redirect_stdout(sys.stderr):  # Ray prints what happens to workers, and not only on the latter
            yield ray
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Check that something answers at an address, for which Ray itself would wait for minutes.

    Raises:
        UsageError: it is no address. BackendError: nothing answers.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    number = typed_number(port)
    if not host or number is None:
        raise UsageError(f"an address of Ray is local, auto or HOST:PORT, got {address!r}")
    try:
        socket.create_connection((host.strip("[]"), number), ANSWER).close()
    except (OSError, OverflowError) as e:
        raise BackendError(f"no Ray was found at {address}: {e}; ray status tells the address, on the head") from e


def on_ray(work: Work, resources: Resources, ray: ModuleType) -> Attempt:
    """Return what computes tasks by actors of Ray Data, each with the model open.

    Every machine must find the model and the images at the same paths, and deploykit in its Python.

    It raises a BackendError if Ray ends, and what a worker raises.
    """

    def attempt(tasks: Sequence[Task]) -> Iterator[Done]:
        data = import_extra("ray.data", "cluster")
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # tracebacks of workers that died, which are replaced
        context = data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = False
        context.max_errored_blocks = -1  # parts over which workers die are not given, and the others go on
        context.execution_no_progress_timeout_s = NO_PROGRESS
        workers = min(resources.workers or _room(ray, resources), len(tasks))
        rows = [{"task": pickle.dumps(task)} for task in tasks]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Ray has no other way yet to bound retries
            done = data.from_items(rows, override_num_blocks=len(rows)).map_batches(
                _Actor,
                fn_constructor_args=(pickle.dumps(work),),
                batch_size=1,
                compute=data.ActorPoolStrategy(size=workers),
                num_cpus=resources.cpus,
                num_gpus=resources.gpus,
                ray_remote_args_fn=lambda: {"max_restarts": -1, "max_task_retries": RETRIES},  # else without an end
            )
        try:
            for row in done.iter_rows():
                found = pickle.loads(row["done"])
                if isinstance(found, DeployError):
                    raise found
                yield found
        except ray.exceptions.RayError as e:
            raise BackendError(f"Ray ended the run: {_said(e)}") from e

    return attempt


class _Actor:
    """A worker as Ray Data calls it: tables of tasks in, tables of what is done out."""

    def __init__(self, work: bytes) -> None:
        self._worker: Worker | DeployError
        try:
            self._worker = Worker(pickle.loads(work))
        except DeployError as e:  # Ray would start it again and again
            self._worker = e

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        return {"done": [pickle.dumps(self._done(pickle.loads(task))) for task in batch["task"]]}

    def _done(self, task: Task) -> Done | DeployError:
        if isinstance(self._worker, DeployError):
            return self._worker
        try:
            return self._worker(task)
        except DeployError as e:
            return e
        except Exception as e:  # else it would look like a worker that died
            return BackendError(f"a worker failed with {type(e).__name__}: {e}")


def _room(ray: ModuleType, resources: Resources) -> int:
    """Return how many workers the cluster has room for now.

    Raises:
        UsageError: for none.
    """
    there = ray.cluster_resources()
    needs = {"CPU": resources.cpus, "GPU": resources.gpus}
    room = min(int(there.get(name, 0) // amount) for name, amount in needs.items() if amount)
    if room < 1:
        raise UsageError(
            f"a worker needs {resources.cpus} cores and {resources.gpus:g} GPUs, but this cluster has "
            f"{there.get('CPU', 0):g} and {there.get('GPU', 0):g}: ask for less with --cpus and --gpus"
        )
    return room


def _said(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
