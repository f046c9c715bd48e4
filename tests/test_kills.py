"""A few kills of the quickest commands; ``python -m tests.kills`` is the long run of all of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.kills.kinds import KINDS

QUICKEST = "package"
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork and no SIGKILL")


def killed(root: Path, kills: int, *kinds: str) -> list[list[str]]:
    """The rows of the table, without its head; a process of its own, because a fork of one with threads may hang."""
    command = [sys.executable, "-m", "tests.kills", "--kills", str(kills), "--only", ",".join(kinds)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    table = done.stdout.partition("\n\n")[2].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def test_kills_leave_whole_files_and_the_next_run_succeeds(root: Path) -> None:
    package, total = killed(root, 5, QUICKEST)
    assert package[:2] == [QUICKEST, "5"]
    assert total[-1] == "0"


@pytest.mark.slow
@pytest.mark.parametrize("kind", [name for name in KINDS if name != QUICKEST])
def test_kills_of_every_command(kind: str, root: Path) -> None:
    row, _ = killed(root, 4, kind)
    assert (row[0], row[1], row[-1]) == (kind, "4", "0")


BREAKS = """
import sys
from pathlib import Path
from deploykit import atomic

def written_over(path, data, *, durable=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    for at in range(0, len(data), 64):
        with path.open("ab" if at else "wb") as file:
            file.write(data[at : at + 64])

atomic.write_atomic = written_over
from tests.kills.__main__ import main
sys.exit(main(["--kills", "12", "--only", "predict"]))
"""


@pytest.mark.slow
def test_a_file_that_is_written_over_is_found(root: Path) -> None:
    """The kills see what they are there for."""
    done = subprocess.run([sys.executable, "-c", BREAKS], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert " is neither the old file nor the new one" in done.stdout
