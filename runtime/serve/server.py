"""A server that listens: HTTP by uvicorn, gRPC beside it, TLS, signals, and its end without a dropped request."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from deploykit.errors import NoPermissionError, UsageError
from deploykit.runtime.serve.access import Access
from deploykit.runtime.serve.app import create_app
from deploykit.runtime.serve.connections import connections_of
from deploykit.runtime.serve.core.observers import Observers
from deploykit.runtime.serve.core.options import ServeOptions, is_loopback
from deploykit.runtime.serve.core.registry import Registry

if TYPE_CHECKING:
    import grpc

    from deploykit.runtime.serve.oip.grpc_server import GrpcServer

__all__ = ["Server"]

LOG = logging.getLogger(__name__)

BACKLOG = 1024  # connections that wait to be accepted
KEEP_ALIVE = 30  # seconds that a connection may be idle
LOOK = 0.05  # seconds between two looks at whether the models are open


class _Uvicorn(uvicorn.Server):
    """Leaves signals to :class:`Server`, which ends with them and does not pass them on."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


class Server:
    """A server of a registry's models. It listens from its making on, and answers while it runs.

    Attributes:
        url: the address over HTTP.
        grpc_address: host and port over gRPC; empty: there is none, or it does not run yet.

    Raises:
        UsageError: an address cannot be listened on, or certificates cannot be used.
    """

    def __init__(self, registry: Registry) -> None:
        options = registry.options
        self._registry, self._options = registry, options
        self._access = Access(options.token_file)
        self._observers = Observers.of(registry)
        self._error: BaseException | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._socket = _listening(options.host, options.port)
        host, port = self._socket.getsockname()[:2]
        self.url = f"http{'s' * bool(options.tls_cert)}://{f'[{host}]' if ':' in host else host}:{port}"
        self.grpc_address = ""
        try:
            self._http = _Uvicorn(self._config())
        except BaseException:
            self._socket.close()
            raise

    def _config(self) -> uvicorn.Config:
        options = self._options
        hosts = options.allow_host if is_loopback(options.host) and options.token_file is None else None
        config = uvicorn.Config(
            create_app(self._registry, observers=self._observers, failed=self._fail, hosts=hosts),
            http=connections_of(options.connections),
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=max(1, int(options.drain)),
            ssl_certfile=options.tls_cert,
            ssl_keyfile=options.tls_key,
            ssl_ca_certs=options.tls_client_ca,
            ssl_cert_reqs=ssl.CERT_NONE if options.tls_client_ca is None else ssl.CERT_REQUIRED,
        )
        try:
            config.load()
        except (OSError, ssl.SSLError) as e:
            raise UsageError(f"the certificate, its key or the authorities cannot be used: {e}") from e
        return config

    @property
    def started(self) -> bool:
        """Whether requests are answered, if only with the news that models are being loaded."""
        return self._http.started

    async def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Answer requests until :meth:`stop`, SIGTERM or Ctrl-C; ``ready`` is called when the models are open.

        Raises:
            DeployError: a model cannot be opened. UsageError: the port of gRPC cannot be listened on.
        """
        grpc_server = self._grpc()
        if grpc_server is not None:
            self.grpc_address = f"{self._options.host}:{grpc_server.port}"
            await grpc_server.start()
        waiting = asyncio.ensure_future(self._tell(ready))
        try:
            with self._signals():
                await self._http.serve([self._socket])
        finally:
            waiting.cancel()
            if grpc_server is not None:
                await grpc_server.stop(1.0)
            self._socket.close()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Begin to stop: further requests are refused, and those that there are end. Any thread may call it."""
        self._registry.draining, self._registry.ready = True, False
        self._http.should_exit = True

    def _fail(self, error: BaseException) -> None:
        self._error = error
        self.stop()

    async def _tell(self, ready: Callable[[], None]) -> None:
        while not self._registry.ready:
            await asyncio.sleep(LOOK)
        ready()

    def _grpc(self) -> GrpcServer | None:
        """Return the server over gRPC where it is asked for."""
        if self._options.grpc_port is None:
            return None
        from deploykit.runtime.serve.oip.grpc_server import GrpcServer

        credentials = _credentials(self._options)
        return GrpcServer(self._registry, self._access.check, self._observers, credentials)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Let signals stop the server, or load changed models again, while the context lasts in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()

        def end(number: int, frame: FrameType | None) -> None:
            if self._http.should_exit and number == signal.SIGINT:
                self._http.force_exit = True  # a second Ctrl-C waits for nobody
                for model in self._registry.models:
                    model.batcher.end()
            self.stop()

        def reload(number: int, frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(self._reload)

        handlers = {signal.SIGINT: end, signal.SIGTERM: end}
        if hasattr(signal, "SIGHUP"):
            handlers[signal.SIGHUP] = reload
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        woken = signal.set_wakeup_fd(-1)  # by which the command line would end the runs of requests at once
        try:
            yield
        finally:
            signal.set_wakeup_fd(woken)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _reload(self) -> None:
        task = asyncio.ensure_future(self._registry.reload_changed())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        UsageError: the address is taken, or none of this machine. NoPermissionError: the system does not allow it.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, because asyncio sends at once (TCP_NODELAY) on sockets that name it alone; the body of an
    # answer, which follows its headers, would else wait some 40 ms for the client's acknowledgement.
    found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host.strip("[]"), port))
        found.listen(BACKLOG)
    except PermissionError as e:
        found.close()
        raise NoPermissionError(f"port {port} cannot be listened on: {e.strerror}; choose one from 1024 on") from e
    except OSError as e:
        found.close()
        raise UsageError(f"{host}, port {port}, cannot be listened on: {e.strerror or e}; choose another") from e
    return found


def _credentials(options: ServeOptions) -> grpc.ServerCredentials | None:
    """Return what gRPC needs for TLS; None: there is none."""
    if options.tls_cert is None or options.tls_key is None:
        return None
    import grpc

    pair = (Path(options.tls_key).read_bytes(), Path(options.tls_cert).read_bytes())
    roots = None if options.tls_client_ca is None else Path(options.tls_client_ca).read_bytes()
    return grpc.ssl_server_credentials([pair], roots, require_client_auth=roots is not None)
