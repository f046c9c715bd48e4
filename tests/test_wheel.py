"""What is built holds every module, the image and the sources of the plugins; and nothing else."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from deploykit.runtime.engine_record import FLAVOURS

ROOT = Path(__file__).resolve().parent.parent


def tracked() -> list[str]:
    """Files of the project, without what was built in it."""
    skip = {".git", ".venv", "build", "dist", "demo", "__pycache__", "lib"}
    found = []
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [f for f in folders if f not in skip and not f.startswith(".") and not f.endswith(".egg-info")]
        found += [str((Path(folder) / f).relative_to(ROOT)) for f in files]
    return found


def copied(place: Path) -> Path:
    """A copy of the project, as a clone would have it: builds leave traces, and links must survive."""
    copy = place / "project"
    names = shutil.ignore_patterns(".git", ".venv", "demo", "build", "dist", "*.egg-info", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, copy, symlinks=True, ignore=names)
    (copy / "cpp_plugins" / "lib").mkdir(exist_ok=True)
    (copy / "cpp_plugins" / "lib" / "libdeploykit_cpu.so").write_bytes(b"of this machine")
    return copy


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("build")
    copy = copied(place)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(place / "dist"), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return place / "dist"


MODULES = {"onnxruntime-gpu": "onnxruntime", "cuda-bindings": "cuda", "pillow": "PIL"}
"""The modules of packages that have another name; all others are called as their module, but for hyphens."""


def test_every_extra_has_code_behind_it() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    packages = {re.split(r"[^\w-]", need)[0] for name, needs in extras.items() if name != "dev" for need in needs}
    code = "".join(
        f.read_text() for part in ("deploykit", "models", "export", "runtime") for f in (ROOT / part).rglob("*.py")
    )
    used = set(re.findall(r"""(?m)(?:^\s*(?:import|from) |import_module\(["']|import_extra\(["'])(\w+)""", code))
    used |= set(FLAVOURS.values())  # loaded by the name in that table
    assert not {p for p in packages if MODULES.get(p, p.replace("-", "_")) not in used}


def test_the_wheel_holds_every_module_and_the_image(built: Path) -> None:
    names = set(zipfile.ZipFile(next(built.glob("*.whl"))).namelist())
    modules = {f for f in tracked() if f.startswith("deploykit/") and f.endswith(".py")}
    for part in ("models", "export", "runtime"):
        modules |= {f"deploykit/{f}" for f in tracked() if f.startswith(f"{part}/") and f.endswith(".py")}
    assert modules
    assert modules <= names, sorted(modules - names)
    assert {"deploykit/py.typed", "deploykit/assets/apollo11_crew.jpg"} <= names
    sources = {f"deploykit/{f}" for f in tracked() if f.startswith("cpp_plugins/")}
    assert {"deploykit/cpp_plugins/CMakeLists.txt", "deploykit/cpp_plugins/nms_kpt/kernel.cuh"} <= sources
    assert {n for n in names if n.startswith("deploykit/cpp_plugins/")} == sources
    assert not [n for n in names if n.startswith(("tests/", "models/", "export/", "runtime/"))]


def test_the_source_distribution_holds_the_sources_and_no_tests(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        names = {n.split("/", 1)[-1] for n in sdist.getnames()}
    assert {
        "deploykit/models/families/yolov7.py",
        "deploykit/export/to_onnx.py",
        "deploykit/runtime/postprocess/nms.py",
    } <= names
    assert "deploykit/cpp_plugins/common/exports.map" in names
    assert not [n for n in names if "cpp_plugins/lib" in n]
    assert not [n for n in names if n.startswith("tests")], "a suite without its data and configuration cannot run"


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_wheel_of_the_source_distribution_is_that_of_the_tree(built: Path, tmp_path: Path) -> None:
    """``build`` makes the wheel from the source distribution; made from the tree it holds the same bytes."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(tmp_path / "dist")]
    done = subprocess.run([*command, str(copied(tmp_path))], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    of_sdist, of_tree = (contents(next(folder.glob("*.whl"))) for folder in (built, tmp_path / "dist"))
    assert sorted(of_sdist) == sorted(of_tree)
    assert not [name for name in of_sdist if of_sdist[name] != of_tree[name]]


def test_the_installed_wheel_works_and_leaves_the_top_level_alone(built: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        wheel.extractall(tmp_path / "site")
    code = (
        "import deploykit, importlib.util, sys\n"
        "from deploykit.export.parity.inputs import sample_image\n"
        "assert deploykit.__file__.startswith(sys.argv[1]), deploykit.__file__\n"
        "assert sample_image().is_file()\n"
        "from deploykit.runtime.native.build import source_folder\n"
        "assert (source_folder() / 'CMakeLists.txt').is_file()\n"
        "assert not [n for n in ('models', 'export', 'runtime') if importlib.util.find_spec(n)]\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=tmp_path, env=environment, check=True)


def test_a_clone_without_symbolic_links_does_not_build(tmp_path: Path) -> None:
    copy = copied(tmp_path)
    (copy / "deploykit" / "models").unlink()
    (copy / "deploykit" / "models").write_text("../models")  # what git writes where links are off
    done = subprocess.run(
        [sys.executable, "setup.py", "--version"], cwd=copy, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "deploykit/models must be a symbolic link" in done.stderr
