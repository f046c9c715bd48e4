"""Standard input as a source: one image, one video, or a list of files and addresses."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import BinaryIO

from deploykit.atomic import temporary_folder
from deploykit.errors import ImageError, UsageError, os_errors_as_output_errors
from deploykit.runtime.images.reading import largest_file
from deploykit.runtime.options import MAX_PIXELS
from deploykit.runtime.sources.content import content_of
from deploykit.runtime.sources.frames import Images
from deploykit.runtime.sources.names import LONGEST_LIST, entries_in
from deploykit.runtime.sources.opening import open_entries
from deploykit.runtime.sources.video import Video

__all__ = ["STDIN", "open_stdin"]

STDIN = "stdin"
HEAD = 512


def open_stdin(stream: BinaryIO) -> list[Images | Video]:
    """Open what a stream's bytes are: an encoded image, a video, or text with one path or address per line.

    Raises:
        UsageError: it is a terminal.
        ImageError: it is empty, too long, or none of these.
        NotFoundError: a file of the list does not exist.
    """
    if stream.isatty():
        raise UsageError(
            "- reads standard input, but nothing is piped into it: cat image.jpg | deploykit predict MODEL -"
        )
    head = stream.read(HEAD)
    content = content_of(head)
    if content == "video":
        with temporary_folder() as folder:
            place = folder / "video"
            with os_errors_as_output_errors(place), place.open("wb") as file:
                file.write(head)
                shutil.copyfileobj(stream, file)
            return [Video(place, name=STDIN)]  # which stays open when its file has no name any more
    most = LONGEST_LIST if content == "text" else largest_file(MAX_PIXELS)
    data = head + stream.read(most)
    if len(data) > most:
        raise ImageError(f"{STDIN} has more than {most:,} bytes: copy it into a file")
    if content == "text":
        return open_entries(entries_in(data, STDIN, Path()))
    return [Images((data,), names=(STDIN,))]
