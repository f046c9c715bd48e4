"""Read every hostile checkpoint in a process of its own, under limits, and print what happened as lines of JSON.

Run as ``python -m tests.models.checkpoint.hostile_run FOLDER`` from the repository root; only Linux tells what is
needed here.
Memory is counted above the interpreter with torch imported: each reader is a fork that already has both.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from deploykit.errors import DeployError
from deploykit.models.checkpoint.reader import read_checkpoint
from tests.models.checkpoint.hostile import GOOD_LEGACY, GOOD_SAFETENSORS, GOOD_ZIP
from tests.models.checkpoint.hostile_files import files
from tests.models.checkpoint.hostile_pickles import pickles

DEADLINE = 30  # seconds after which a child is ended
ALLOWANCE = 256 << 20  # bytes, on top of three times the file

# Audit events of a process that runs something, leaves itself or writes.
SUSPICIOUS = ("os.", "subprocess.", "pty.", "socket.", "ctypes.", "shutil.", "urllib.", "pickle.", "marshal.")
SUSPICIOUS_EVENTS = ("exec", "compile", "import", "code.__new__", "function.__new__", "webbrowser.open")

watched: list[str] = []
watching = False


def watch(event: str, args: tuple[Any, ...]) -> None:
    """Remember what a reader must not do; to open its own file is all that it may."""
    if not watching:
        return
    writes = event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR)
    if writes or event in SUSPICIOUS_EVENTS or event.startswith(SUSPICIOUS):
        watched.append(f"{event} {args!r}"[:200])


def memory(field: str) -> int:
    """A field of this process' status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{field}:"))


def in_child(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What ``work`` returns in a fork of this process, or which signal ended it."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receive)
        signal.alarm(DEADLINE)
        os.write(send, json.dumps(work()).encode())
        os._exit(0)
    os.close(send)
    with os.fdopen(receive, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    return json.loads(answer) if answer else {"outcome": f"ended by {status}", "error": ""}


def read(path: Path) -> dict[str, Any]:
    """Read one file under the limit of memory; use what comes out as a caller would."""
    global watching  # noqa: PLW0603
    limit = 3 * path.stat().st_size + ALLOWANCE
    resource.setrlimit(resource.RLIMIT_AS, (memory("VmSize") + limit,) * 2)
    before, start = memory("VmRSS"), time.process_time()
    outcome, error = "loaded", ""
    watching = True
    try:
        checkpoint = read_checkpoint(path)
        str(checkpoint.metadata), json.dumps(checkpoint.metadata), [str(module) for module in checkpoint.modules]
        checkpoint.float32()
    except DeployError as e:
        outcome, error = "refused", str(e)
    except BaseException as e:
        outcome, error = "crashed", repr(e)
    watching = False
    return {
        "outcome": outcome,
        "error": error[:2000],
        "seconds": time.process_time() - start,
        "peak": memory("VmHWM") - before,
        "limit": limit,
        "watched": watched,
    }


def write(folder: Path) -> dict[str, Any]:
    """Make every file, in a process of its own so that the readers' memory is only the readers'."""
    names = {}
    for number, case in enumerate((*pickles(), *files())):
        path = folder / f"{number}{case.suffix}"
        path.write_bytes(case.make())
        names[str(path)] = case.name
    return names


def main(folder: Path) -> None:
    """Read the good files once, so that what they import is imported; then every case."""
    torch.set_num_threads(1)  # forks have no other threads
    for suffix, good in ((".zip.pt", GOOD_ZIP), (".old.pt", GOOD_LEGACY), (".safetensors", GOOD_SAFETENSORS)):
        path = folder / f"good{suffix}"
        path.write_bytes(good)
        assert len(read_checkpoint(path).float32()["w"]) == 4
    paths = in_child(lambda: write(folder))
    gc.freeze()  # a collection in a fork would write into the pages of all that is imported
    sys.addaudithook(watch)
    for made, name in paths.items():
        result = in_child(lambda p=Path(made): read(p))
        print(json.dumps({"name": name, **result}), flush=True)
        Path(made).unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
