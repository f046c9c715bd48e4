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


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, which the test sets."""
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    return clock


def test_a_long_step_says_how_far_it_is_after_ten_seconds_of_silence(
    now: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    lines = _display.StepLines()
    lines.step("quantizing")
    lines.step("quantizing: ranges")
    for second in range(1, 21):
        now[0] = float(second)
        lines.share(f"quantizing: ranges, {second} of 64 runs", second / 64)
    lines.step("quantizing: layers")
    now[0] = 31.0
    lines.step("quantizing: choosing layers")
    assert capsys.readouterr().err.splitlines() == [
        "[   0.0 s] quantizing",
        "[  10.0 s] quantizing: ranges, 10 of 64 runs: 16 %, about 54 s left",
        "[  20.0 s] quantizing: ranges, 20 of 64 runs: 31 %, about 44 s left",
        "[  31.0 s] quantizing: choosing layers",
    ]


def test_the_time_left_begins_anew_with_every_count_of_shares(now: list[float]) -> None:
    pace = _display.Pace()
    now[0] = 100.0
    pace.step()
    now[0] = 110.0
    assert pace.left(0.5) == "about 10 s left"
    pace.step()  # a detail of the same count
    now[0] = 115.0
    assert pace.left(0.75) == "about 5 s left"
    now[0] = 200.0
    pace.step()
    assert pace.left(0.0) == ""
    now[0] = 260.0
    assert pace.left(0.1) == "about 9 min left"


def test_a_step_of_half_a_minute_says_once_what_makes_it_faster(now: list[float]) -> None:
    heard = Heard()
    timer = StepTimer(heard, {"quantizing": "fewer images are faster"})
    timer.step("quantizing: ranges")
    now[0] = 29.0
    timer.share("ranges", 0.5)
    assert heard.messages == []
    for now[0] in (31.0, 62.0):
        timer.share("ranges", 0.9)
    timer.step("writing")
    assert heard.messages == ["fewer images are faster"]
