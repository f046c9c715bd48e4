"""What a long job says: nothing by default, every word to whoever listens, and how long its steps took."""

from __future__ import annotations

import time

import pytest

from deploykit.cli import _display
from deploykit.export.step_timer import StepTimer
from deploykit.progress import SILENT, Progress, Within
from tests.heard import Heard


def say(progress: Progress) -> None:
    progress.step("ranges")
    progress.share("ranges, 1 of 2 runs", 0.5)
    progress.message("ranges of an earlier export are used")


def test_the_default_hears_everything_and_does_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    say(SILENT)
    assert type(SILENT) is Progress
    assert capsys.readouterr() == ("", "")


def test_a_part_of_a_job_is_heard_with_its_name_and_its_messages_as_they_are() -> None:
    heard = Heard()
    say(Within("quantizing: ", heard))
    assert heard.steps == ["quantizing: ranges"]
    assert heard.shares == [("quantizing: ranges, 1 of 2 runs", 0.5)]
    assert heard.messages == ["ranges of an earlier export are used"]


def test_a_timer_passes_everything_on_and_adds_up_the_details_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    heard = Heard()
    timer = StepTimer(heard)
    for name, seconds in (("reading", 1.0), ("checking", 2.0), ("checking: noise", 3.0), ("writing", 4.0)):
        timer.step(name)
        now[0] += seconds
    say(timer)
    assert timer.seconds() == {"reading": 1.0, "checking": 5.0, "writing": 4.0, "ranges": 0.0}
    assert heard.steps == ["reading", "checking", "checking: noise", "writing", "ranges"]
    assert heard.shares == [("ranges, 1 of 2 runs", 0.5)]
    assert heard.messages == ["ranges of an earlier export are used"]


def test_lines_are_one_per_step_and_one_per_message(capsys: pytest.CaptureFixture[str]) -> None:
    with _display.shown_progress() as progress:
        for name in ("checking", "checking: noise", "writing"):
            progress.step(name)
        say(progress)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("] ")[1] for line in lines[:3]] == ["checking", "writing", "ranges"]
    assert lines[3:] == ["deploykit: note: ranges of an earlier export are used"]
