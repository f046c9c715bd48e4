"""The models of a server by name and version: opened, warmed up, replaced, and closed."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from deploykit.errors import DeployError, NotFoundError, UsageError
from deploykit.numerals import typed_number
from deploykit.runtime.cores import usable_cores
from deploykit.runtime.predict.predictor import Predictor
from deploykit.runtime.serve.core.failures import RefusedError
from deploykit.runtime.serve.core.model import ModelSource, ServedModel, modified
from deploykit.runtime.serve.core.options import ServeOptions

__all__ = ["Loader", "Registry", "sources_of"]

LOG = logging.getLogger(__name__)

Loader = Callable[[str], Predictor[Any]]
"""Opens the model of a file; it is called in the thread, or one of the threads, that will run it."""

NAMED = re.compile(r"([\w.-]{1,100})(?::([1-9]\d{0,8}))?=(.+)", re.DOTALL)
NAME = re.compile(r"[\w.-]{1,100}")


def sources_of(words: Iterable[str]) -> list[ModelSource]:
    """Return the models that words name: ``FILE``, ``NAME=FILE`` or ``NAME:VERSION=FILE``.

    A file without a name is called as its stem; without a version it is version 1.

    Raises:
        UsageError: two have the same name and version, or a name has characters that do not suit an address.
    """
    found: dict[tuple[str, int], ModelSource] = {}
    for word in words:
        named = NAMED.fullmatch(word)
        name, version, path = (named[1], int(named[2] or 1), named[3]) if named else (Path(word).stem, 1, word)
        if not NAME.fullmatch(name):
            raise UsageError(f"{name!r} does not suit an address: name the model, as in NAME={word}")
        if (name, version) in found:
            raise UsageError(
                f"two models are called {name}, version {version}: name them NAME=FILE, or NAME:2=FILE for a version"
            )
        found[name, version] = ModelSource(name, version, path)
    if not found:
        raise UsageError("name a model to serve")
    return list(found.values())


class Registry:
    """The models of a server.

    Args:
        sources: what is served.
        load: opens a model.
        options: the options of the server.
    """

    def __init__(self, sources: Sequence[ModelSource], load: Loader, options: ServeOptions) -> None:
        self.sources, self.options = list(sources), options
        self.ready = False
        self.draining = False
        self._load = load
        self._models: dict[tuple[str, int], ServedModel] = {}
        self._seen: dict[str, tuple[int, int, int]] = {}
        self._reading = ThreadPoolExecutor(usable_cores()[0], thread_name_prefix="reading")
        self._turn = asyncio.Lock()

    @property
    def names(self) -> list[str]:
        """The names of the models, each once, in the order in which they were given."""
        return list(dict.fromkeys(source.name for source in self.sources))

    @property
    def models(self) -> list[ServedModel]:
        """The models that are open."""
        return list(self._models.values())

    @property
    def private(self) -> list[str]:
        """Paths that no client may see."""
        return [source.path for source in self.sources]

    def versions(self, name: str) -> list[int]:
        """Return the versions of a model, in order.

        Raises:
            NotFoundError: there is no such model.
        """
        found = sorted(source.version for source in self.sources if source.name == name)
        if not found:
            raise NotFoundError(f"there is no model {name[:100]!r} here; there are {', '.join(self.names)}")
        return found

    def get(self, name: str | None = None, version: str | int = "") -> ServedModel:
        """Return an open model.

        Args:
            name: its name; None: the only one, or the first.
            version: its version; empty: the newest one that is open.

        Raises:
            NotFoundError: there is no such model or version. RefusedError: it is not open yet.
        """
        name = self.names[0] if name is None else name
        versions = self.versions(name)
        if version != "":
            wanted = typed_number(str(version)) or 0
            if wanted not in versions:
                raise NotFoundError(
                    f"the model {name} has no version {str(version)[:20]!r}; it has {', '.join(map(str, versions))}"
                )
            versions = [wanted]
        for each in reversed(versions):
            if (name, each) in self._models:
                return self._models[name, each]
        raise RefusedError(503, f"the model {name} is being loaded", 1)

    async def start(self) -> None:
        """Open all models and warm them up.

        Raises:
            DeployError: one of them cannot be opened.
        """
        for source in self.sources:
            self._models[source.name, source.version] = await self._opened(source)
        self.ready = True

    async def reload(self, name: str, *, only_changed: bool = False) -> list[int]:
        """Open a model again, and let the new one take the place of the old one, which ends its requests and is closed.

        A version that cannot be opened stays as it is.

        Args:
            name: the model.
            only_changed: leave versions whose file is the same as before.

        Returns:
            The versions that were replaced.

        Raises:
            NotFoundError: there is no such model. DeployError: a version cannot be opened.
        """
        self.versions(name)
        done = []
        async with self._turn:
            for source in [each for each in self.sources if each.name == name]:
                if only_changed and modified(source.path) == self._seen.get(source.path):
                    continue
                fresh = await self._opened(source)
                old = self._models.get((source.name, source.version))
                self._models[source.name, source.version] = fresh
                done.append(source.version)
                LOG.info("%s, version %d, is loaded again", source.name, source.version)
                if old is not None:
                    await old.close(self.options.drain)
        return done

    async def reload_changed(self) -> None:
        """Open the models whose files are others than before again; what fails is logged."""
        for name in self.names:
            try:
                await self.reload(name, only_changed=True)
            except DeployError as e:
                LOG.error("%s stays as it is, because it cannot be loaded again: %s", name, e)

    async def stop(self) -> None:
        """Refuse further requests, let those that there are end, and close the models."""
        self.ready, self.draining = False, True
        await asyncio.gather(*(model.close(self.options.drain) for model in self._models.values()))
        self._models.clear()
        self._reading.shutdown(wait=False, cancel_futures=True)

    async def _opened(self, source: ModelSource) -> ServedModel:
        """Open a model in the one thread that will run it, or in any where several may."""
        pool = ThreadPoolExecutor(1, thread_name_prefix=f"model {source.name}")
        seen, loop = modified(source.path), asyncio.get_running_loop()
        try:
            predictor = await loop.run_in_executor(pool, self._load, source.path)
            if predictor.session.concurrent:
                pool.shutdown(wait=False)
                pool = ThreadPoolExecutor(predictor.workers, thread_name_prefix=f"model {source.name}")
            model = ServedModel(source, predictor, pool, self._reading, self.options)
            try:
                await model.warm_up()
            except BaseException:
                await model.close(0)
                raise
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        self._seen[source.path] = seen
        return model
