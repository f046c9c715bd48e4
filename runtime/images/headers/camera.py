"""Files of cameras that OpenCV does not read, by their bytes: RAW files and HEIC."""

from __future__ import annotations

from deploykit.runtime.images.headers.tiff import numbers_of, with_subdirectories

__all__ = ["camera_file"]

RAW_MAGIC = (b"FUJIFILMCCD-RAW", b"IIU\0", b"IIRO", b"IIRS", b"MMOR")  # RAF; RW2; ORF
RAW_BRANDS, HEIC_BRANDS = (b"crx ",), (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
PHOTOMETRIC, DNG_VERSION = 262, 50706
MOSAICS = (32803, 34892)  # a colour filter array; linear RAW


def camera_file(data: bytes) -> str:
    """Return what a camera wrote: ``RAW``, ``HEIC``, or nothing, if it is another file.

    Most RAW formats are a TIFF, in which OpenCV finds the thumbnail or nothing; their mosaics tell them.
    """
    if data.startswith(RAW_MAGIC) or data[8:11] == b"CR\x02":
        return "RAW"
    if data[4:8] == b"ftyp":
        return "RAW" if data[8:12] in RAW_BRANDS else "HEIC" if data[8:12] in HEIC_BRANDS else ""
    directories = with_subdirectories(data)
    mosaic = any(number in MOSAICS for tags in directories for number in numbers_of(tags.get(PHOTOMETRIC)))
    return "RAW" if mosaic or any(DNG_VERSION in tags for tags in directories) else ""
