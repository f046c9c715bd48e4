"""Addresses of images, videos and streams, and what of them may be shown: no password, no query."""

from __future__ import annotations

import re
import urllib.parse
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Literal

from deploykit.errors import UsageError
from deploykit.runtime.images.folders import IMAGE_SUFFIXES, VIDEO_SUFFIXES

__all__ = ["Address", "is_address"]

WEB = ("http", "https")
LIVE = ("rtsp", "rtsps", "rtmp", "rtmps", "tcp", "udp")
LIVE_SUFFIXES = {".m3u8", ".mjpeg", ".mjpg"}
SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+)://")

AddressKind = Literal["image", "video", "stream", "unknown"]


def is_address(source: object) -> bool:
    """Return whether a source is an address, such as ``https://...`` or ``rtsp://...``."""
    return isinstance(source, str) and SCHEME.match(source) is not None


@dataclass(frozen=True)
class Address:
    """An address.

    Attributes:
        text: the whole address, with its user, password and query: for the connection only.
        name: what messages and results show: scheme, host and path.
    """

    text: str = field(repr=False)
    name: str = field(default="", init=False)

    def __post_init__(self) -> None:
        """Check the address.

        Raises:
            UsageError: its scheme is not one that is read, or it has no host.
        """
        try:
            parts = urllib.parse.urlsplit(self.text)
            host, _ = parts.hostname, parts.port
        except ValueError as e:
            raise UsageError(f"an address such as https://host/image.jpg was expected, but {e}") from e
        name = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        object.__setattr__(self, "name", "".join(c for c in name if c.isprintable()))
        if parts.scheme not in WEB + LIVE:
            raise UsageError(
                f"an address must begin with {', '.join(f'{s}://' for s in (*WEB, 'rtsp', 'rtmp'))}, but {self.name} "
                "does not: give a file by its path"
            )
        if not host:
            raise UsageError(f"the address {self.name} has no host: expected {parts.scheme}://host/path")

    @property
    def scheme(self) -> str:
        """The scheme, in small letters."""
        return urllib.parse.urlsplit(self.text).scheme

    @property
    def suffix(self) -> str:
        """The suffix of its path, in small letters."""
        return PurePosixPath(urllib.parse.urlsplit(self.text).path).suffix.lower()

    @property
    def is_playlist(self) -> bool:
        """Whether it is that of an HLS playlist, by its suffix."""
        return self.suffix == ".m3u8"

    @property
    def kind(self) -> AddressKind:
        """What scheme and suffix tell: only an answer tells the rest."""
        if self.scheme in LIVE or self.suffix in LIVE_SUFFIXES:
            return "stream"
        return "image" if self.suffix in IMAGE_SUFFIXES else "video" if self.suffix in VIDEO_SUFFIXES else "unknown"
