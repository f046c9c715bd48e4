"""How far a builder is: a share that rises from 0 to 1, whatever the phases do."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
import time
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.export.engine.builder import run_interruptibly
from deploykit.export.engine.progress import BuildProgress
from tests.heard import Heard


def followed() -> tuple[BuildProgress, list[tuple[str, float]]]:
    heard = Heard()
    return BuildProgress(heard), heard.shares


def test_steps_of_a_phase_are_shares_of_it() -> None:
    progress, told = followed()
    progress.start("build", None, 4)
    for step in range(4):
        assert progress.step("build", step)
    progress.finish("build")
    assert told == [("build", share) for share in (0.0, 0.25, 0.5, 0.75, 1.0, 1.0)]


def test_a_phase_inside_fills_the_running_step() -> None:
    progress, told = followed()
    progress.start("build", None, 2)
    progress.step("build", 0)
    progress.start("inner", "build", 4)
    progress.step("inner", 0)
    progress.step("inner", 1)
    assert told[-1] == ("build", 0.75)
    progress.finish("inner")
    assert told[-1] == ("build", 0.75)  # it waits where it would fall
    progress.step("build", 1)
    assert told[-1] == ("build", 1.0)


def test_the_end_is_the_end_though_not_every_step_was_told() -> None:
    progress, told = followed()
    progress.start("build", None, 6)
    progress.step("build", 0)
    progress.start("inner", "build", 3)
    progress.finish("build")
    assert told[-1] == ("build", 1.0)


def test_a_cancelled_build_is_told_to_stop_at_its_next_step() -> None:
    progress, _ = followed()
    progress.start("build", None, 3)
    assert progress.step("build", 0)
    progress.cancelled = True
    assert not progress.step("build", 1)


events = st.lists(
    st.one_of(
        st.tuples(st.just("start"), st.sampled_from("abcd"), st.sampled_from([None, *"abcd"]), st.integers(-1, 5)),
        st.tuples(st.just("step"), st.sampled_from("abcd"), st.integers(0, 9)),
        st.tuples(st.just("finish"), st.sampled_from("abcd")),
    ),
    max_size=40,
)


@given(events)
def test_the_share_never_falls_and_stays_between_0_and_1(told_events: list[tuple[object, ...]]) -> None:
    progress, told = followed()
    for kind, *arguments in told_events:
        getattr(progress, str(kind))(*arguments)
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert all(0 <= share <= 1 for share in shares)


@pytest.mark.parametrize("times", [1, 3])
def test_ctrl_c_waits_for_the_builder_however_often_it_is_pressed(times: int) -> None:
    ended: list[bool] = []
    heard = Heard()
    progress = BuildProgress(heard)

    def work() -> None:
        for _ in range(times):
            before = len(heard.messages)
            os.kill(os.getpid(), signal.SIGINT)
            while len(heard.messages) == before:
                time.sleep(0.01)
        time.sleep(0.1)
        ended.append(progress.cancelled)

    with pytest.raises(KeyboardInterrupt):
        run_interruptibly(work, progress)
    assert ended == [True]
    assert heard.messages == ["interrupted: TensorRT ends the build at its next step"] * times


def test_ctrl_c_before_the_builder_begins_does_not_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[bool] = []
    start = threading.Thread.start

    def late(self: threading.Thread) -> None:
        threading.Timer(0.2, start, [self]).start() if self.name == "engine build" else start(self)
        if self.name == "engine build":
            raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", late)
    with pytest.raises(KeyboardInterrupt):
        run_interruptibly(lambda: begun.append(True), BuildProgress(Heard()))
    time.sleep(0.5)
    assert begun == []


def test_what_fails_in_the_thread_is_raised_with_its_own_type() -> None:
    def work() -> None:
        raise ZeroDivisionError("it")

    with pytest.raises(ZeroDivisionError, match="it"):
        run_interruptibly(work, BuildProgress(Heard()))
    assert run_interruptibly(lambda: 3, BuildProgress(Heard())) == 3


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_build_that_fails_leaves_nothing_to_the_garbage_collector(interrupted: bool) -> None:
    """TensorRT's objects must not be freed by a collection that happens while TensorRT logs."""

    class Builder:
        pass

    builder, heard = Builder(), Heard()
    freed = weakref.ref(builder)

    def work(builder: Builder = builder) -> None:
        if interrupted:
            os.kill(os.getpid(), signal.SIGINT)
            while not heard.messages:
                time.sleep(0.01)
        raise MemoryError(str(builder))

    del builder
    gc.disable()
    try:
        with contextlib.suppress(MemoryError, KeyboardInterrupt):
            run_interruptibly(work, BuildProgress(heard))
        del work
        assert freed() is None
    finally:
        gc.enable()
