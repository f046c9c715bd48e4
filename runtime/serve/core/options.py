"""Options of the server: the only place that states them and their defaults."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from deploykit.errors import NotFoundError, UsageError

__all__ = ["ServeOptions", "is_loopback"]

MEGABYTE = 1 << 20
LEAST = {
    "port": 0, "max_batch": 1, "batch_window": 0, "queue": 1, "timeout": 0.001, "max_body": 1, "max_pixels": 1,
    "connections": 1, "drain": 0,
}  # fmt: skip
"""The least value of each number."""


@dataclass(frozen=True)
class ServeOptions:
    """Options of a server.

    Attributes:
        host: the address to listen on. Any but this machine's own (loopback) needs ``token_file`` or ``tls_client_ca``.
        port: of HTTP; 0: any that is free.
        grpc_port: of gRPC; None: there is none; 0: any that is free.
        max_batch: the most images, or rows of tensors, of several requests that run together, where the network's batch
            is dynamic.
        batch_window: milliseconds that a request waits for others that are on their way; it never waits alone.
        queue: the most requests of a model that wait or run; further ones are refused (503).
        timeout: seconds in which a request must be answered, from its headers on.
        max_body: bytes of a request.
        max_pixels: the most pixels that an image may declare.
        connections: the most open connections; further ones are refused (503).
        allow_host: names under which a server on this machine's own address may be asked, besides ``localhost`` and
            its addresses, as by a server in front of it that passes the name on.
        allow_url: hosts whose images may be fetched by their address; none: addresses are refused.
        allow_reload: let clients load a model again (``POST /v2/repository/models/NAME/load``).
        token_file: a file with tokens, one a line, of which a request must carry one (``Authorization: Bearer``).
        tls_cert, tls_key: files (PEM) with the server's certificate and its key.
        tls_client_ca: a file (PEM) with the authorities that must have signed a client's certificate.
        log_format: how a request is logged on standard error: ``text``, ``json`` or ``none``.
        streams: name -> source (a video, an address, a camera's number) whose results are sent as they come.
        drain: seconds that requests may take to end when the server stops.

    Raises:
        UsageError: a number is out of range, options contradict each other, or a host is open to everybody.
        NotFoundError: a file does not exist.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    grpc_port: int | None = None
    max_batch: int = 8
    batch_window: float = 2.0
    queue: int = 64
    timeout: float = 30.0
    max_body: int = 32 * MEGABYTE
    max_pixels: int = 50_000_000
    connections: int = 512
    allow_host: tuple[str, ...] = ()
    allow_url: tuple[str, ...] = ()
    allow_reload: bool = False
    token_file: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_client_ca: str | None = None
    log_format: Literal["text", "json", "none"] = "text"
    streams: dict[str, str] = field(default_factory=dict)
    drain: float = 30.0

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            if not getattr(self, name) >= least:  # which NaN is not either
                raise UsageError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for port in (self.port, self.grpc_port or 0):
            if not 0 <= port < 1 << 16:
                raise UsageError(f"a port must lie in 0..65535, got {port}")
        for name in ("token_file", "tls_cert", "tls_key", "tls_client_ca"):
            file = getattr(self, name)
            if file is not None and not Path(file).is_file():
                raise NotFoundError(f"a file was expected at {file} ({name}), but there is none")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise UsageError("a certificate and its key go together: give both tls_cert and tls_key, or neither")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise UsageError("certificates of clients are checked over TLS: give tls_cert and tls_key too")
        if not is_loopback(self.host) and self.token_file is None and self.tls_client_ca is None:
            raise UsageError(
                f"whoever reaches {self.host} could use this server: give a token (--token-file) or let clients show "
                "certificates (--tls-client-ca), or listen on 127.0.0.1"
            )


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address to listen on."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
