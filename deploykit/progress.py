"""What a long job says while it runs: one object that whoever waits for it passes in."""

from __future__ import annotations

__all__ = ["SILENT", "Progress", "Within"]


class Progress:
    """The listener of a long job. Its methods do nothing: override those that you want to hear.

    Every function that takes a while has a parameter ``progress``, and :data:`SILENT` for its default. A method must
    return quickly, because the job waits for it, and what it raises ends the job.
    """

    def step(self, name: str) -> None:
        """A step begins, and the one before it has ended. The details of a step follow a colon: ``checking: noise``.

        Called from the thread that runs the job.
        """

    def share(self, what: str, done: float) -> None:
        """The running step is done to the share ``done``, from 0 to 1, and ``what`` says what it is busy with.

        Only long steps call it, and often. While TensorRT builds an engine it calls from threads of its own; everything
        else calls from the thread that runs the job.
        """

    def message(self, text: str) -> None:
        """Something that a person should know now and not at the end, in one sentence without a full stop.

        Called from the thread that runs the job.
        """


SILENT = Progress()
"""Hears everything and does nothing: the default of every parameter ``progress``."""


class Within(Progress):
    """A part of a job: its steps and shares reach ``progress`` behind a prefix, its messages as they are."""

    def __init__(self, prefix: str, progress: Progress) -> None:
        self.prefix, self.progress = prefix, progress

    def step(self, name: str) -> None:
        """See :meth:`Progress.step`."""
        self.progress.step(f"{self.prefix}{name}")

    def share(self, what: str, done: float) -> None:
        """See :meth:`Progress.share`."""
        self.progress.share(f"{self.prefix}{what}", done)

    def message(self, text: str) -> None:
        """See :meth:`Progress.message`."""
        self.progress.message(text)
