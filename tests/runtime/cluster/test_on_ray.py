"""Workers as actors of a real Ray of this machine, with two workers."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest

if importlib.util.find_spec("ray") is None:  # and not imported here, because connected() sets what its import reads
    pytest.skip("ray is not installed", allow_module_level=True)

from deploykit.errors import BackendError, NotFoundError, UsageError
from deploykit.facade import load
from deploykit.runtime.cluster.on_ray import LOOPBACK, Resources, connected, on_ray
from deploykit.runtime.cluster.parts import Format
from deploykit.runtime.cluster.plan import Plan, items_of
from deploykit.runtime.cluster.processes import in_processes
from deploykit.runtime.cluster.run import check_folder, complete
from deploykit.runtime.cluster.work import DEADLY, Work, model_digest
from deploykit.runtime.sources.opening import open_sources
from tests.cluster_workers import planned, stub_work

TWO = Resources(workers=2)
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
"""What Ray and its packages warn about is their own."""


@pytest.fixture(scope="module")
def ray(root: Path) -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{root}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        with connected("local", TWO) as ray:
            yield ray


@pytest.fixture(scope="module")
def images(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for i in range(24):
        (folder / f"{i:02}.jpg").symlink_to(root / "deploykit/assets/markers.jpg")
    (folder / "05.jpg").unlink()
    (folder / "05.jpg").write_bytes(b"no image")
    return folder


def markers(root: Path, form: Format = "jsonl") -> Work:
    model = root / "deploykit/assets/markers.onnx"
    return Work(partial(load, str(model), threads=1), str(model), model_digest(model), form)


def plan_of(images: Path, work: Work, per_part: int = 2) -> Plan:
    return Plan({"model": work.digest}, items_of(open_sources(str(images))), per_part)  # type: ignore[arg-type]  # images all


def rows_in(folder: Path) -> list[dict[str, object]]:
    rows = [json.loads(line) for file in sorted((folder / "parts").iterdir()) for line in file.read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "timings_ms"} for row in rows]


def test_it_listens_on_loopback_alone(ray: ModuleType) -> None:
    assert ray.is_initialized()
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    pids = {int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal() and _of(entry, session)}
    ours = {link for pid in pids for link in _sockets(pid)}
    listening = [
        fields[1].partition(":")[0]
        for table in ("tcp", "tcp6")
        for fields in map(str.split, Path(f"/proc/net/{table}").read_text().splitlines()[1:])
        if fields[3] == "0A" and fields[9] in ours
    ]
    assert len(listening) >= 5, listening  # gcs, raylet, object manager, workers
    assert set(listening) <= {"0100007F", "0" * 24 + "01000000", "0" * 16 + "FFFF00000100007F"}, listening


def _of(process: Path, session: Path) -> bool:
    """Whether a process belongs to this Ray, or is this process."""
    if int(process.name) == os.getpid():
        return True
    try:
        return str(session).encode() in (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
    except OSError:
        return False


def _sockets(pid: int) -> Iterator[str]:
    try:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            target = str(link.readlink())
            if target.startswith("socket:["):
                yield target[8:-1]
    except OSError:
        return


def test_the_rows_are_those_of_a_run_in_one_process(ray: ModuleType, root: Path, images: Path, tmp_path: Path) -> None:
    work = markers(root)
    manifest = complete(plan_of(images, work), tmp_path / "ray", "jsonl", on_ray(work, TWO, ray))
    alone = complete(plan_of(images, work), tmp_path / "alone", "jsonl", in_processes(work, 1))
    assert (manifest.images, manifest.failed, manifest.plan) == (24, 1, alone.plan)
    rows = rows_in(tmp_path / "ray")
    assert rows == rows_in(tmp_path / "alone")
    assert len(rows[0]["detections"]) == 8  # type: ignore[arg-type]  # a list


def test_parquet_parts_come_from_the_workers(ray: ModuleType, root: Path, images: Path, tmp_path: Path) -> None:
    work = markers(root, "parquet")
    complete(plan_of(images, work, 10), tmp_path, "parquet", on_ray(work, TWO, ray), join=True)
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(tmp_path / "results.parquet")
    assert table.num_rows == 24
    assert table.column("error").null_count == 23
    check_folder(tmp_path)


def test_a_worker_that_is_killed_in_the_middle_costs_nothing(
    ray: ModuleType, root: Path, images: Path, tmp_path: Path
) -> None:
    work, killed = markers(root), []

    def kill_one() -> None:
        while not list((tmp_path / "out/parts").glob("part-*")):  # the run is under way
            time.sleep(0.02)
        workers = [p for p in Path("/proc").iterdir() if p.name.isdecimal() and b"ray::MapWorker" in _command(p)]
        os.kill(int(workers[0].name), signal.SIGKILL)
        killed.append(workers[0].name)

    killer = threading.Thread(target=kill_one)
    killer.start()
    manifest = complete(plan_of(images, work), tmp_path / "out", "jsonl", on_ray(work, TWO, ray))
    killer.join()
    complete(plan_of(images, work), tmp_path / "alone", "jsonl", in_processes(work, 1))
    assert killed
    assert manifest.computed == 12
    assert rows_in(tmp_path / "out") == rows_in(tmp_path / "alone")
    check_folder(tmp_path / "out")


def _command(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


@pytest.mark.slow
def test_an_image_that_kills_every_worker_is_a_row_without_a_result(ray: ModuleType, tmp_path: Path) -> None:
    manifest = complete(
        planned(["a", "deadly", "bad", "b", "c"], 4), tmp_path / "out", "jsonl", on_ray(stub_work(tmp_path), TWO, ray)
    )
    assert manifest.failed == 2
    assert [row.get("error") for row in rows_in(tmp_path / "out")] == [None, DEADLY, "bad is bad", None, None]


def test_what_a_worker_raises_ends_the_run(ray: ModuleType, tmp_path: Path) -> None:
    work = Work(partial(load, str(tmp_path / "none.onnx")), "", "", "jsonl")
    with pytest.raises(NotFoundError, match=r"none\.onnx"):
        complete(planned(["a"], 1), tmp_path / "out", "jsonl", on_ray(work, TWO, ray))


def test_a_cluster_that_is_too_small_is_told(ray: ModuleType, tmp_path: Path) -> None:
    attempt = on_ray(stub_work(tmp_path), Resources(cpus=64), ray)
    with pytest.raises(UsageError, match="a worker needs 64 cores and 0 GPUs, but this cluster has 2 and 0"):
        complete(planned(["a"], 1), tmp_path / "out", "jsonl", attempt)


RUN = """
import sys
from deploykit.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_run_of_which_everything_is_killed_is_continued(root: Path, images: Path, tmp_path: Path) -> None:
    """The head, the workers and Ray itself: SIGKILL to the whole session of processes, in the middle."""
    words = [
        "cluster", "run", str(root / "deploykit/assets/markers.onnx"), str(images), "--out", str(tmp_path / "out"),
        "--per-part", "1", "--workers", "2", "--address", "local", "--join",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RUN, *words]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        while len(list((tmp_path / "out/parts").glob("part-*"))) < 3:
            assert process.poll() is None
            time.sleep(0.02)
        before = _descendants(process.pid)
        for pid in [process.pid, *before]:
            _kill(pid)
    there = len(list((tmp_path / "out/parts").glob("part-*")))
    assert 3 <= there < 24
    assert not (tmp_path / "out/manifest.json").exists()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 20, done.stderr  # one image cannot be read
    assert f"{there} of 24 images are complete since an earlier run" in done.stderr
    assert f"{24 - there} parts computed" in done.stdout
    work = markers(root)
    complete(plan_of(images, work), tmp_path / "alone", "jsonl", in_processes(work, 1))
    assert rows_in(tmp_path / "out") == rows_in(tmp_path / "alone")
    assert check_folder(tmp_path / "out").images == 24


def _descendants(pid: int) -> list[int]:
    """Return the processes below one, and those that have left it for the session's beginning."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parents.setdefault(int((entry / "stat").read_text().rpartition(")")[2].split()[1]), []).append(
                    int(entry.name)
                )
            except OSError:
                continue
    found = [pid]
    for each in found:
        found += parents.get(each, [])
    return found[1:]


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def test_a_ray_that_would_listen_everywhere_is_not_started() -> None:
    code = (
        "import ray\n"
        "from deploykit.runtime.cluster.on_ray import *\n"
        "from deploykit.errors import UsageError\n"
        "try:\n"
        "    with connected('local', Resources()): pass\n"
        "except UsageError as e: print('said:', e)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != LOOPBACK}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert "said: Ray was imported before, and would listen on every interface" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("address", "kind", "said"),
    [("127.0.0.1:1", BackendError, "no Ray was found at 127.0.0.1:1"), ("here", UsageError, "got 'here'")],
)
def test_a_cluster_that_is_not_there_is_one_error(address: str, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said), connected(address, TWO):
        pass
