"""What something is by its first bytes."""

from __future__ import annotations

import re
from typing import Literal

from deploykit.runtime.images.headers.image_header import READERS

__all__ = ["Content", "content_of"]

Content = Literal["image", "video", "playlist", "stream", "page", "text", "other"]

PAGE = re.compile(rb"\s*<(!doctype|!--|html|head|body)", re.IGNORECASE)
NETPBM = re.compile(rb"P[1-7]\s")
WORDS = (b"P", b"BM", b"RIFF")  # with which a text may begin too, or a video
VIDEOS = (
    b"\x1aE\xdf\xa3",  # Matroska, WebM
    b"OggS",
    b"FLV\x01",
    b"\x00\x00\x01\xba",  # MPEG program stream
    b"\x00\x00\x01\xb3",
    b"0&\xb2u\x8ef\xcf\x11",  # ASF: WMV
)
STILL_BRANDS = {b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1"}
TS_PACKET = 188


def content_of(head: bytes) -> Content:
    """Return what the first bytes of a file or an answer (512 are enough) are the beginning of."""
    if NETPBM.match(head) or any(head.startswith(magic) for magic, _ in READERS if magic not in WORDS):
        return "image"
    if head[4:8] == b"ftyp":
        return "image" if head[8:12] in STILL_BRANDS else "video"
    if head.startswith(b"RIFF") and head[8:12] in (b"WEBP", b"AVI "):
        return "image" if head[8:12] == b"WEBP" else "video"
    if head.startswith(VIDEOS) or (head[:1] == b"G" and head[TS_PACKET : TS_PACKET + 1] == b"G" and not _is_text(head)):
        return "video"
    if head.startswith(b"#EXTM3U"):
        return "playlist"
    if PAGE.match(head):
        return "page"
    if _is_text(head):
        return "text"
    return "image" if head.startswith(b"BM") else "other"


def _is_text(head: bytes) -> bool:
    """Return whether bytes may be lines of text; a letter may be cut at their end."""
    try:
        head.decode()
    except UnicodeDecodeError as e:
        if e.start < len(head) - 3:
            return False
    return bool(head.strip()) and not any(byte < 32 and byte not in b"\t\n\r\f" for byte in head)
