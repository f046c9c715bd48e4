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

from deploykit.errors import DISTRIBUTION
from deploykit.runtime.backends.ort_providers import PLUGINS
from deploykit.runtime.engine_record import FLAVOURS
from deploykit.version import DOCS_URL, REPOSITORY_URL
from tests.doctor.test_sbom import check_wheel

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
    (copy / "cpp_plugins" / "lib" / "libdeploykit_cuda.so").write_bytes(b"of this machine")
    return copy


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("build")
    copy = copied(place)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(place / "dist"), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return place / "dist"


MODULES = {
    "onnxruntime-gpu": "onnxruntime",
    "cuda-bindings": "cuda",
    "pillow": "PIL",
    "grpcio": "grpc",
    "opentelemetry-sdk": "opentelemetry",
    "opentelemetry-exporter-otlp-proto-http": "opentelemetry",
    "protobuf": "google",
    "nvidia-nvimgcodec-cu13": "nvidia",
    "httptools": "uvicorn",  # which imports it for the class of our connections
    "pyopenssl": "model_signing",  # which imports it and does not require it
}
"""The modules of packages that have another name; all others are called as their module, but for hyphens."""


OF_DEVELOPERS = {"dev", "docs"}
"""Extras whose packages are used by the tests and by docs/, not by the package."""


def test_every_extra_has_code_behind_it() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    packages = {
        re.split(r"[^\w-]", need)[0] for name, needs in extras.items() if name not in OF_DEVELOPERS for need in needs
    }
    code = "".join(
        f.read_text() for part in ("deploykit", "models", "export", "runtime") for f in (ROOT / part).rglob("*.py")
    )
    used = set(re.findall(r"""(?m)(?:^\s*(?:import|from) |import_module\(["']|import_extra\(["'])(\w+)""", code))
    used |= set(FLAVOURS.values()) | {p.module for p in PLUGINS}  # loaded by the name in these tables
    assert not {p for p in packages if MODULES.get(p, p.replace("-", "_")) not in used}


def test_the_wheel_holds_every_module_and_the_image(built: Path) -> None:
    names = set(zipfile.ZipFile(next(built.glob("*.whl"))).namelist())
    modules = {f for f in tracked() if f.startswith("deploykit/") and f.endswith(".py")}
    for part in ("models", "export", "runtime"):
        modules |= {f"deploykit/{f}" for f in tracked() if f.startswith(f"{part}/") and f.endswith(".py")}
    assert modules
    assert modules <= names, sorted(modules - names)
    assert {"deploykit/py.typed", "deploykit/assets/apollo11_crew.jpg"} <= names
    assert {f"deploykit/assets/markers.{suffix}" for suffix in ("onnx", "pt", "jpg")} <= names
    assert {f"deploykit/{f}" for f in tracked() if f.startswith("runtime/serve/page/")} <= names
    sources = {f"deploykit/{f}" for f in tracked() if f.startswith("cpp_plugins/")}
    assert {"deploykit/cpp_plugins/CMakeLists.txt", "deploykit/cpp_plugins/nms_kpt/kernel.cuh"} <= sources
    assert {n for n in names if n.startswith("deploykit/cpp_plugins/")} == sources
    assert not [n for n in names if n.startswith(("tests/", "models/", "export/", "runtime/"))]


def test_the_wheel_holds_a_bill_of_its_materials(built: Path) -> None:
    document = check_wheel(next(built.glob("*.whl")))
    components = {each["name"]: each for each in document["components"]}
    assert components["deploykit/assets/markers.onnx"]["type"] == "machine-learning-model"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [
        *project["dependencies"],
        *(need for needs in project["optional-dependencies"].values() for need in needs),
    ]
    assert {re.split(r"[^\w-]", need)[0].lower() for need in listed} <= set(components)
    assert {n for n, each in components.items() if each.get("scope") == "required"} == {
        re.split(r"[^\w-]", need)[0] for need in project["dependencies"]
    }


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


@pytest.mark.skipif(not shutil.which("cmake"), reason="no cmake: the native library cannot be built")
@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))), reason="no C++ compiler")
def test_a_native_wheel_is_of_one_platform_and_every_python_and_gives_what_numpy_gives(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(tmp_path / "dist")]
    environment = {**os.environ, "DEPLOYKIT_BUILD_NATIVE": "1"}
    done = subprocess.run(
        [*command, str(copied(tmp_path))], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert re.fullmatch(rf"{DISTRIBUTION.replace('-', '_')}-[\d.]+-py3-none-(?!any)\w+\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        inside = archive.namelist()
        assert "Root-Is-Purelib: false" in archive.read(next(n for n in inside if n.endswith("/WHEEL"))).decode()
        archive.extractall(tmp_path / "site")
    listed = {each["name"] for each in check_wheel(wheel)["components"]}
    libraries = [name for name in inside if "/cpp_plugins/lib/" in name and not name.endswith("/")]
    assert len(libraries) == 1
    assert libraries[0] in listed
    assert (tmp_path / "site" / libraries[0]).read_bytes() != b"of this machine", "a library of the clone was shipped"
    shutil.copy(ROOT / "scripts" / "check_wheel.py", tmp_path)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DEPLOYKIT_")}
    environment["PYTHONPATH"] = str(tmp_path / "site")
    checked = subprocess.run(
        [sys.executable, "check_wheel.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout.startswith(str(tmp_path / "site"))


def test_the_name_and_the_addresses_are_stated_alike_and_no_link_of_the_readme_is_relative(built: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["name"] == DISTRIBUTION
    assert project["urls"]["Source"] == REPOSITORY_URL
    assert project["urls"]["Documentation"] == DOCS_URL
    (wheel,) = built.glob("*.whl")
    metadata = next(text for name, text in contents(wheel).items() if name.endswith(".dist-info/METADATA")).decode()
    links = re.findall(r"\]\(([^)]+)\)", metadata)
    assert f"{REPOSITORY_URL}/raw/main/docs/images/markers.jpg" in links
    assert not [link for link in links if not link.startswith(("https://", "http://", "#"))]


def test_no_text_tells_anybody_to_install_the_other_project() -> None:
    pages = [
        *ROOT.glob("*.md"),
        *(p for p in (ROOT / "docs").rglob("*.md") if "_build" not in p.parts),
        *(ROOT / f for f in tracked() if f.endswith(".py")),
    ]
    wrong = re.compile(r"pip install [^\n]*\bdeploykit(?:\[|'|\s*$)", re.MULTILINE)
    assert not [str(page) for page in pages if page != Path(__file__) and wrong.search(page.read_text())]


def test_a_clone_without_symbolic_links_does_not_build(tmp_path: Path) -> None:
    copy = copied(tmp_path)
    (copy / "deploykit" / "models").unlink()
    (copy / "deploykit" / "models").write_text("../models")  # what git writes where links are off
    done = subprocess.run(
        [sys.executable, "setup.py", "--version"], cwd=copy, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "deploykit/models must be a symbolic link" in done.stderr
