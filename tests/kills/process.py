"""A command in a forked process, which is killed at a moment, and what it does with files."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Ended", "Moment", "do_apart", "run"]

OPERATIONS = {
    "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.truncate", "os.utime",
    "shutil.copyfile", "subprocess.Popen",
}  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass(frozen=True)
class Moment:
    """When a process is killed: after some seconds, or before its operation on files of a number (from 1)."""

    seconds: float | None = None
    operation: int | None = None


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code (-9: killed), its operations on files, its seconds, and what it said."""

    code: int
    operations: int
    seconds: float
    said: str


class Counter:
    """Counts the operations on files below a folder, and kills the process before one of them."""

    def __init__(self, root: Path, last: int | None) -> None:
        self.root, self.last, self.count = str(root), last, 0

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            if not (isinstance(args[2], int) and args[2] & WRITING) or not self._inside(args[0]):
                return
        elif event not in OPERATIONS or (event != "subprocess.Popen" and not self._inside(args[0])):
            return
        self.count += 1
        if self.count == self.last:
            os.kill(os.getpid(), signal.SIGKILL)

    def _inside(self, path: object) -> bool:
        if not isinstance(path, (str, bytes, os.PathLike)):
            return False
        name = os.fsdecode(path)
        return not Path(name).is_absolute() or name.startswith(self.root)


def run(words: Sequence[str], folder: Path, moment: Moment | None = None) -> Ended:
    """Run a command of deploykit in ``folder``, with its temporary files and its cache in folders beside ``out``."""
    report = folder.with_name(f"{folder.name}.log")
    began = time.perf_counter()
    pid = _forked(lambda: _command(words, folder, moment, report))
    if moment is not None and moment.seconds is not None:
        while time.perf_counter() - began < moment.seconds:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                break
            time.sleep(0.002)
        else:
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
    else:
        _, status = os.waitpid(pid, 0)
    said = report.read_text(errors="replace") if report.exists() else ""
    count = [line for line in said.splitlines() if line.startswith("operations: ")]
    operations = int(count[-1].split()[1]) if count else 0
    return Ended(os.waitstatus_to_exitcode(status), operations, time.perf_counter() - began, said)


def do_apart(job: Callable[[], object]) -> None:
    """Do a job in a forked process, so that this one stays without threads.

    Raises:
        RuntimeError: it failed.
    """

    def work() -> int:
        job()
        return 0

    _, status = os.waitpid(_forked(work), 0)
    if status:
        raise RuntimeError("a job in another process failed, see above")


def _forked(work: Callable[[], int]) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    if pid := os.fork():
        return pid
    code = 99
    try:
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: it does not outlive this program
        code = work()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _command(words: Sequence[str], folder: Path, moment: Moment | None, report: Path) -> int:
    log = os.open(report, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    for number in (1, 2):
        os.dup2(log, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(folder)
    for name, place in (("TMPDIR", "tmp"), ("XDG_CACHE_HOME", "cache")):
        (folder / place).mkdir(exist_ok=True)
        os.environ[name] = str(folder / place)
    os.environ["DEPLOYKIT_PLUGINS"] = str(folder / "no plugins")
    os.environ.pop("DEPLOYKIT_REFERENCE_CACHE", None)
    tempfile.tempdir = None
    counter = Counter(folder, moment.operation if moment else None)
    sys.addaudithook(counter)
    from deploykit.cli import main

    code = main(list(words))
    print(f"operations: {counter.count}", flush=True)
    return code
