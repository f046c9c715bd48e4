"""Make a cell's environment with uv, run its checks there, and delete it."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.matrix.cells import Cell, checks_of

__all__ = ["Outcome", "Tools", "run_cell", "wheel"]

ROOT = Path(__file__).resolve().parents[2]
HEADLESS = "opencv-python-headless"
"""The same module as opencv-python, without the windows that need libGL."""


@dataclass(frozen=True)
class Tools:
    """What environments are made with: uv, where packages lie besides the index, and an interpreter per version."""

    uv: str
    find_links: tuple[str, ...] = ()
    interpreters: dict[str, str] = field(default_factory=dict)

    def interpreter(self, version: str) -> str | None:
        """Return the path of a version's interpreter; None: there is none."""
        return self.interpreters.get(version) or shutil.which(f"python{version}")


@dataclass(frozen=True)
class Outcome:
    """What became of a cell.

    Attributes:
        date: when it ran.
        python: the interpreter's whole version.
        versions: the installed packages.
        passed: the checks that passed.
        failed: check, or ``install`` -> what it said.
    """

    date: str
    python: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    passed: tuple[str, ...] = ()
    failed: dict[str, str] = field(default_factory=dict)


@contextlib.contextmanager
def wheel(tools: Tools) -> Iterator[Path]:
    """Give the wheel of the tree as it is, with the native library, while the context lasts."""
    with tempfile.TemporaryDirectory() as folder:
        left_out = shutil.ignore_patterns(".*", "build", "dist", "demo", "*.egg-info", "__pycache__", "lib", "tests")
        copy = shutil.copytree(ROOT, Path(folder, "project"), symlinks=True, ignore=left_out)
        command = [tools.uv, "build", "--quiet", "--wheel", "--out-dir", folder, str(copy)]
        subprocess.run(command, check=True, env={**os.environ, "DEPLOYKIT_BUILD_NATIVE": "1"})
        yield next(Path(folder).glob("*.whl"))


def run_cell(cell: Cell, built: Path, tools: Tools) -> Outcome:
    """Install and check one cell."""
    today = datetime.date.today().isoformat()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        python = Path(folder, "env", "bin", "python")
        made = _uv(tools, "venv", "--python", str(tools.interpreter(cell.python)), str(python.parents[1]))
        if made.returncode == 0:
            made = _uv(tools, "pip", "install", "--python", str(python), *_wanted(cell, built, tools, Path(folder)))
        if made.returncode != 0:
            return Outcome(today, failed={"install": " ".join(made.stderr.split())[-600:]})
        listed = _uv(tools, "pip", "list", "--python", str(python), "--format", "json")
        versions = {each["name"]: each["version"] for each in json.loads(listed.stdout)}
        done = subprocess.run([str(python), "-V"], capture_output=True, text=True, check=True)
        passed, failed = _checked(python, checks_of(cell))
        return Outcome(today, done.stdout.split()[1], versions, tuple(passed), failed)


def _uv(tools: Tools, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([tools.uv, *words], capture_output=True, text=True, check=False)


def _wanted(cell: Cell, built: Path, tools: Tools, folder: Path) -> list[str]:
    """The arguments of ``uv pip install``."""
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    overrides = folder / "overrides.txt"
    overrides.write_text("opencv-python; python_version < '3'\n")
    named = f"deploykit-vision[{','.join(cell.extras)}]" if cell.extras else "deploykit-vision"
    words = [f"{named} @ {built.as_uri()}", *cell.pins, "--overrides", str(overrides), "--only-binary", ":all:"]
    words += [word for place in tools.find_links for word in ("--find-links", place)]
    if not any(pin.startswith(HEADLESS) for pin in cell.pins):
        words += [re.sub("opencv-python", HEADLESS, need) for need in project["dependencies"] if "opencv" in need]
    if cell.resolution == "oldest":  # uv takes the oldest of what is named here alone
        extras = project["optional-dependencies"]
        needs = [*project["dependencies"], *(need for name in cell.extras for need in extras[name])]
        words += ["--resolution", "lowest-direct", *(need for need in needs if "opencv" not in need)]
    if cell.resolution == "pinned":
        ours = {re.split("[=<>]", pin)[0] for pin in cell.pins}
        lines = (ROOT / "constraints.txt").read_text().splitlines()
        constraints = folder / "constraints.txt"
        constraints.write_text("\n".join(line for line in lines if line.split("==")[0] not in ours) + "\n")
        words += ["--constraints", str(constraints)]
    return words


def _checked(python: Path, names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Which checks passed, and what the others said."""
    passed, failed = [], {}
    with tempfile.TemporaryDirectory() as folder:
        script = shutil.copy(Path(__file__).with_name("checks.py"), folder)
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "DEPLOYKIT"))
        }
        errors = Path(folder, "stderr.txt")
        command = [str(python), str(script), str(ROOT), *names]
        with (
            errors.open("w") as told,
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=told, text=True, cwd=folder, env=environment
            ) as checks,
        ):
            assert checks.stdout is not None
            for line in checks.stdout:
                found = json.loads(line)
                print(
                    f"    {found['check']:<8} {found['seconds']:6.1f} s  {found['says'] or 'passed'}", file=sys.stderr
                )
                if found["says"]:
                    failed[found["check"]] = re.sub(r"/\S*/", ".../", found["says"])
                else:
                    passed.append(found["check"])
        said = errors.read_text().strip()[-200:]
    unheard = [name for name in names if name not in passed and name not in failed]
    return passed, failed | {name: f"did not run: {said}" for name in unheard}
