"""Everything is in pyproject.toml, but for what only code can do.

It refuses to build half a package, makes the README's links absolute for the package index, and with
``DEPLOYKIT_BUILD_NATIVE=1`` compiles the native CPU library into the wheel, which then is of one platform. A bill of
materials of the wheel lies in it (PEP 770).
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import tempfile
from importlib.metadata import PathDistribution
from pathlib import Path
from types import ModuleType

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
NATIVE = os.environ.get("DEPLOYKIT_BUILD_NATIVE", "0") not in ("", "0")
BROUGHT = ("deploykit/assets/**/*", "deploykit/cpp_plugins/lib/**/*")  # what the bill of materials lists file by file
LIBRARIES = Path("deploykit", "cpp_plugins", "lib")  # where runtime/native/library.py looks


class BuildPy(build_py):
    """Adds the library that CMake makes of ``cpp_plugins``."""

    def run(self) -> None:
        super().run()
        if not NATIVE:
            return
        place = Path(self.build_lib, LIBRARIES).absolute()
        with tempfile.TemporaryDirectory() as temporary:
            off = [f"-DDEPLOYKIT_{part}=OFF" for part in ("CUDA", "TENSORRT", "ONNXRUNTIME")]
            source = (ROOT / "cpp_plugins").resolve()
            subprocess.run(
                ["cmake", "-S", source, "-B", temporary, *off, f"-DCMAKE_INSTALL_PREFIX={place}"], check=True
            )
            subprocess.run(["cmake", "--build", temporary, "--config", "Release"], check=True)
            subprocess.run(["cmake", "--install", temporary, "--config", "Release"], check=True)


class Package(Distribution):
    """Of one platform where the library is in it, so that it is installed, and repaired, as a compiled one."""

    def has_ext_modules(self) -> bool:
        return NATIVE


class Wheel(bdist_wheel):
    """A wheel with the library serves every Python: the library is called through ctypes and knows none.

    In its metadata lies a bill of materials: the files that are no source code of ours, and what is required.
    """

    def write_wheelfile(self, wheelfile_base: str, *args: str, **options: str) -> None:
        super().write_wheelfile(wheelfile_base, *args, **options)
        place = Path(wheelfile_base, "sboms", "deploykit.cdx.json")
        place.parent.mkdir(exist_ok=True)
        root = Path(self.bdist_dir)
        files = [file for part in BROUGHT for file in root.glob(part) if file.is_file()]
        contents = {file.relative_to(root).as_posix(): file.read_bytes() for file in files}
        document = sbom().of_wheel(PathDistribution(Path(wheelfile_base)), contents)
        place.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")

    def get_tag(self) -> tuple[str, str, str]:
        python, abi, platform = super().get_tag()
        return ("py3", "none", platform) if NATIVE else (python, abi, platform)


def sbom() -> ModuleType:
    """The writer of bills of materials, which needs nothing of the package around it."""
    spec = importlib.util.spec_from_file_location("sbom", ROOT / "deploykit" / "doctor" / "sbom.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def readme() -> str:
    """README.md with absolute links: relative ones lead nowhere from the package index."""
    repository = re.search(r'REPOSITORY_URL = "(.+)"', (ROOT / "deploykit" / "version.py").read_text())
    assert repository is not None
    place = {"": f"{repository[1]}/blob/main/", "!": f"{repository[1]}/raw/main/"}
    link = re.compile(r"(!?)(\[[^\]]*\])\((?!https?://|#)([^)\s]+)\)")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return link.sub(lambda found: f"{found[1]}{found[2]}({place[found[1]]}{found[3]})", text)


for part in ("models", "export", "runtime", "cpp_plugins"):
    if not (ROOT / "deploykit" / part).is_dir():
        raise SystemExit(
            f"deploykit/{part} must be a symbolic link to the folder {part}, and is not: clone with symbolic links "
            "(git config core.symlinks true), or the package would lack it"
        )

setup(
    distclass=Package,
    cmdclass={"build_py": BuildPy, "bdist_wheel": Wheel},
    long_description=readme(),
    long_description_content_type="text/markdown",
    setup_requires=["cmake>=3.18"] if NATIVE and shutil.which("cmake") is None else [],
)
