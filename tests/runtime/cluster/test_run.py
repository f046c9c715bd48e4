"""A run that is stopped at any moment is continued by the next one: nothing is lost, and nothing is there twice."""

from __future__ import annotations

import json
import os
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit import atomic, partials
from deploykit.errors import BackendError, DataError, DiskFullError, UsageError
from deploykit.progress import Progress
from deploykit.runtime.cluster import run
from deploykit.runtime.cluster.plan import Plan
from deploykit.runtime.cluster.run import check_folder, complete
from deploykit.runtime.cluster.work import Done, Task
from tests.cluster_workers import done_by_hand, planned


class Killed(BaseException):
    """The end of a process, which nothing may catch."""


def in_any_order(seed: int, computed: Counter[int]) -> Callable[[Sequence[Task]], Iterator[Done]]:
    """What computes tasks in some order, some of them twice, as where a worker was thought to be dead."""

    def attempt(tasks: Sequence[Task]) -> Iterator[Done]:
        chance = random.Random(seed)
        again = chance.sample(tasks, len(tasks) // 3)
        for task in chance.sample([*tasks, *again], len(tasks) + len(again)):
            computed[task.number] += 1
            yield done_by_hand(task)

    return attempt


class KilledAt:
    """Writes files whole until the given step, where the process ends: before the write, in it, or after it."""

    def __init__(self, step: int, how: str) -> None:
        self.left, self.how = step, how

    def __call__(self, path: Path, data: bytes) -> None:
        self.left -= 1
        if self.left >= 0:
            atomic.write_atomic(path, data)
            return
        if self.how == "in":  # what a process that is killed leaves: half a file under a hidden name
            hidden = path.parent / f".{path.stem}.{partials._machine()}-1-00000000.partial{path.suffix}"
            hidden.write_bytes(data[: len(data) // 2])
        elif self.how == "after":
            atomic.write_atomic(path, data)
        raise Killed


@settings(max_examples=60)
@given(
    names=st.lists(st.sampled_from(["a", "b", "bad", "é", "c d"]), min_size=1, max_size=25),
    per_part=st.integers(1, 6),
    stops=st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["before", "in", "after"]), st.integers()), max_size=5),
    join=st.booleans(),
)
def test_however_often_a_run_is_stopped_each_image_has_one_row(
    names: list[str], per_part: int, stops: list[tuple[int, str, int]], join: bool
) -> None:
    plan = planned([f"{i}{name}" for i, name in enumerate(names)], per_part)
    with tempfile.TemporaryDirectory() as temporary:
        folder, whole = Path(temporary, "stopped"), Path(temporary, "whole")
        for step, how, seed in stops:
            with mock.patch.object(run, "write_atomic", KilledAt(step, how)):
                try:
                    complete(plan, folder, "jsonl", in_any_order(seed, Counter()), join=join)
                except Killed:
                    partials._CLEANED.clear()  # the next process looks for abandoned files again
        there = {file.name for file in (folder / "parts").glob("part-*")} if folder.exists() else set()
        computed: Counter[int] = Counter()
        manifest = complete(plan, folder, "jsonl", in_any_order(7, computed), join=join)
        complete(plan, whole, "jsonl", in_any_order(8, Counter()), join=join)
        assert set(computed) == {n for n in range(plan.parts) if f"part-{n:06d}.jsonl" not in there}
        assert manifest.computed == len(computed)
        assert manifest.failed == sum("bad" in name for name in names)
        assert check_folder(folder).images == len(names)
        for file in (path for path in whole.rglob("*") if path.is_file() and path.name != "manifest.json"):
            assert (folder / file.relative_to(whole)).read_bytes() == file.read_bytes()
        assert {p.name for p in (folder / "parts").iterdir()} == {p.name for p in (whole / "parts").iterdir()}


def none_computed(tasks: Sequence[Task]) -> Iterator[Done]:
    raise AssertionError(f"{len(tasks)} parts are complete, and are computed again")


def by_hand(tasks: Sequence[Task]) -> Iterator[Done]:
    return map(done_by_hand, tasks)


def test_a_complete_run_computes_nothing_more(tmp_path: Path) -> None:
    plan = planned(list("abcde"), 2)
    first = complete(plan, tmp_path / "out", "jsonl", by_hand)
    again = complete(plan, tmp_path / "out", "jsonl", none_computed)
    assert (first.computed, again.computed) == (3, 0)
    assert first.parts == again.parts


def test_a_run_of_another_plan_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    complete(planned(list("abc"), 2), tmp_path, "jsonl", by_hand)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for other in (planned(list("abcd"), 2), Plan({"model": "n"}, planned(list("abc"), 2).items, 2)):
        with pytest.raises(UsageError, match=r"holds another run: (d is new among the images|it is of another model)"):
            complete(other, tmp_path, "jsonl", none_computed)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_parts_without_a_plan_are_nobodys(tmp_path: Path) -> None:
    complete(planned(list("abc"), 2), tmp_path, "jsonl", by_hand)
    (tmp_path / "plan.jsonl").unlink()
    with pytest.raises(UsageError, match=r"has no plan\.jsonl, but part-00000.\.jsonl"):
        complete(planned(list("abc"), 2), tmp_path, "jsonl", none_computed)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such locks")
def test_two_runs_do_not_write_into_one_folder(tmp_path: Path) -> None:
    plan = planned(list("abc"), 1)

    def meanwhile(tasks: Sequence[Task]) -> Iterator[Done]:
        with pytest.raises(UsageError, match="another run writes into"):
            complete(plan, tmp_path, "jsonl", none_computed)
        yield from by_hand(tasks)

    assert complete(plan, tmp_path, "jsonl", meanwhile).computed == 3


@pytest.mark.parametrize(
    ("content", "said"),
    [(b'{"name"', "its last line has no end"), (b'{"name": "b"}\n{"name": "a"}\n', "other rows than its plan")],
)
def test_a_part_that_is_not_what_it_should_be_stops_the_run(content: bytes, said: str, tmp_path: Path) -> None:
    plan = planned(list("abc"), 2)
    complete(plan, tmp_path, "jsonl", by_hand)
    (tmp_path / "parts/part-000000.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=said):
        complete(plan, tmp_path, "jsonl", none_computed)
    (tmp_path / "parts/part-000000.jsonl").unlink()
    assert complete(plan, tmp_path, "jsonl", by_hand).computed == 1


def test_a_full_disk_stops_a_run_and_what_is_written_stays(tmp_path: Path) -> None:
    plan, written = planned(list("abcd"), 1), []

    def full(path: Path, data: bytes) -> None:
        if len(written) == 3:  # the plan and two parts
            raise DiskFullError("full")
        written.append(path)
        atomic.write_atomic(path, data)

    with mock.patch.object(run, "write_atomic", full), pytest.raises(DiskFullError):
        complete(plan, tmp_path, "jsonl", by_hand)
    assert not (tmp_path / "manifest.json").exists()
    assert complete(plan, tmp_path, "jsonl", by_hand).computed == 2


def test_an_image_over_which_workers_die_becomes_a_row_that_says_so(tmp_path: Path) -> None:
    """Workers that die give nothing; its part is computed again without it."""

    def attempt(tasks: Sequence[Task]) -> Iterator[Done]:
        for task in tasks:
            if not any(item.name == "deadly" and item.name not in task.deadly for item in task.items):
                yield done_by_hand(task)

    manifest = complete(planned(["a", "b", "deadly", "c"], 2), tmp_path, "jsonl", attempt)
    assert manifest.images == 4
    assert check_folder(tmp_path).parts == manifest.parts


def test_workers_that_die_over_everything_end_the_run(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="workers died over part 0, a to b, and again over its images one by one"):
        complete(planned(list("abc"), 2), tmp_path, "jsonl", lambda tasks: iter(()))


@pytest.mark.parametrize("change", ["part", "row", "plan", "manifest"])
def test_a_folder_that_was_changed_is_not_whole(change: str, tmp_path: Path) -> None:
    complete(planned(list("abc"), 2), tmp_path, "jsonl", by_hand)
    check_folder(tmp_path)
    part = tmp_path / "parts/part-000001.jsonl"
    if change == "part":
        part.write_bytes(part.read_bytes() * 2)
    elif change == "plan":
        (tmp_path / "plan.jsonl").write_bytes(planned(list("abcd"), 2).data)
    else:
        about = json.loads((tmp_path / "manifest.json").read_text())
        del about["parts" if change == "manifest" else "images"]
        if change == "row":  # a manifest that fits its parts, but does not have all of them
            about |= {"images": 2, "parts": about["parts"][:1]}
        (tmp_path / "manifest.json").write_text(json.dumps(about))
    said = {"part": "has changed since", "row": "are not those of the images", "plan": "is not the plan"}
    with pytest.raises(DataError, match=said.get(change, "is not the manifest of a run")):
        check_folder(tmp_path)


def test_all_rows_as_one_file_are_checked_too_and_the_same_run_mends_them(tmp_path: Path) -> None:
    plan = planned(list("abc"), 2)
    complete(plan, tmp_path, "jsonl", by_hand, join=True)
    whole = check_folder(tmp_path)
    assert whole.joined is not None
    file = tmp_path / whole.joined.file
    for damaged in (file.read_bytes()[:-1], file.read_bytes().replace(b'"b"', b'"x"'), None):
        file.write_bytes(damaged) if damaged is not None else file.unlink()
        with pytest.raises((DataError, FileNotFoundError), match=r"results\.jsonl"):
            check_folder(tmp_path)
        assert complete(plan, tmp_path, "jsonl", by_hand, join=True).computed == 0
        assert check_folder(tmp_path).joined == whole.joined
    about = json.loads((tmp_path / "manifest.json").read_text())
    del about["joined"]  # as versions wrote it that did not know it
    (tmp_path / "manifest.json").write_text(json.dumps(about))
    assert check_folder(tmp_path).joined is None


def test_progress_tells_what_an_earlier_run_has_done_and_the_share(tmp_path: Path) -> None:
    class Heard(Progress):
        def __init__(self) -> None:
            self.said: list[str] = []

        def share(self, what: str, done: float) -> None:
            self.said.append(f"{what} {done:.2f}")

        def message(self, text: str) -> None:
            self.said.append(text)

    def first_alone(tasks: Sequence[Task]) -> Iterator[Done]:
        yield done_by_hand(tasks[0])
        raise Killed

    plan, heard = planned(list("abcd"), 1), Heard()
    with pytest.raises(Killed):
        complete(plan, tmp_path, "jsonl", first_alone)
    complete(plan, tmp_path, "jsonl", by_hand, progress=heard)
    assert heard.said == [
        "1 of 4 images are complete since an earlier run",
        "computing: 2 of 4 images 0.50", "computing: 3 of 4 images 0.75", "computing: 4 of 4 images 1.00",
    ]  # fmt: skip
