"""Workers as processes: one that dies is replaced, and only the image that kills every one has no result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deploykit.errors import DataError, NotFoundError
from deploykit.runtime.cluster.plan import Plan, items_of
from deploykit.runtime.cluster.processes import in_processes
from deploykit.runtime.cluster.run import check_folder, complete
from deploykit.runtime.cluster.work import CHANGED, DEADLY, Task, Work, Worker, model_digest
from deploykit.runtime.sources.opening import open_sources
from tests.cluster_workers import done_by_hand, planned, stub_work


def rows_in(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for file in sorted((folder / "parts").iterdir()) for line in file.read_text().splitlines()]


def test_a_worker_that_dies_is_replaced_and_an_image_that_kills_every_one_is_told(tmp_path: Path) -> None:
    plan = planned(["a", "once", "b", "deadly", "bad", "c"], 2)
    manifest = complete(plan, tmp_path / "out", "jsonl", in_processes(stub_work(tmp_path), 2))
    assert (tmp_path / "died").exists()
    assert len(list(tmp_path.glob("tried-*"))) >= 3  # two workers, and others
    assert check_folder(tmp_path / "out").failed == manifest.failed == 2
    rows = rows_in(tmp_path / "out")
    assert [row["name"] for row in rows] == [item.name for item in plan.items]
    assert [row.get("error") for row in rows] == [None, None, None, DEADLY, "bad is bad", None]


def test_one_worker_is_this_process(tmp_path: Path) -> None:
    tasks = [Task(0, planned(["a", "bad"], 2).items), Task(1, planned(["b"], 1).items)]
    assert list(in_processes(stub_work(tmp_path), 1)(tasks)) == [done_by_hand(task) for task in tasks]


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_worker_raises_ends_the_run(workers: int, tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"one")
    work = Work(stub_work(tmp_path).open, str(tmp_path / "model"), model_digest(tmp_path / "model"), "jsonl")
    (tmp_path / "model").write_bytes(b"two")
    with pytest.raises(DataError, match="is another file for a worker"):
        complete(planned(["a", "b"], 1), tmp_path / "out", "jsonl", in_processes(work, workers))


def test_a_model_that_is_gone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"a model was expected at .*m\.onnx, but it cannot be read: No such file"):
        model_digest(tmp_path / "m.onnx")


def test_a_file_that_changed_since_the_plan_has_no_result(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / name).touch()
    plan = Plan({}, items_of(open_sources(str(tmp_path))), 3)  # type: ignore[arg-type]  # images all
    (tmp_path / "b.png").write_bytes(b"longer")
    complete(plan, tmp_path / "out", "jsonl", in_processes(stub_work(tmp_path), 1))
    assert [row.get("error") for row in rows_in(tmp_path / "out")] == [None, CHANGED, None]


def test_the_digest_of_a_model_is_of_all_its_files(tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(b"graph")
    alone = model_digest(model)
    (tmp_path / "m.onnx.data").write_bytes(b"weights")
    with_weights = model_digest(model)
    (tmp_path / "m.onnx.data").write_bytes(b"others")
    assert len({alone, with_weights, model_digest(model)}) == 3


def test_a_batch_that_one_image_spoils_is_computed_one_by_one(tmp_path: Path) -> None:
    """A network that gives NaN for one image raises for its whole batch."""
    from deploykit.errors import NotFiniteError

    class Spoiled:
        def stream(self, images: object, *, skip: object) -> object:
            names = images.names  # type: ignore[attr-defined]
            if "nan" in names:
                raise NotFiniteError("nan gives NaN")
            return stub_work(tmp_path).open().stream(images, skip=skip)  # type: ignore[arg-type]

    worker = Worker(Work(Spoiled, "", "", "jsonl"))  # type: ignore[arg-type]  # all that a worker asks of a predictor
    done = worker(Task(0, planned(["a", "nan", "bad", "b"], 4).items))
    assert [json.loads(line).get("error") for line in done.data.splitlines()] == [
        None, "nan gives NaN", "bad is bad", None,
    ]  # fmt: skip
