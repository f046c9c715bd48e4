"""docs/licences.md names every dependency with the licence of its metadata, and SECURITY.md names tests that exist."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata

import pytest

from deploykit.doctor.sbom import licence_of
from deploykit.version import REPOSITORY_URL, __version__
from tests.test_docs import ROOT

ALLOWED = {
    "0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "ISC", "MIT", "MIT-CMU", "PSF-2.0",
    "Zlib",
}  # fmt: skip
OF_FILES = {"certifi": "MPL-2.0"}
"""Packages that are not changed, with a licence that asks for the source of changed files."""

OF_NVIDIA = {
    "tensorrt", "tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu13-libs", "tensorrt-rtx-cu13-bindings",
}  # fmt: skip
"""Packages with a licence of NVIDIA's own, which only extras bring that the user chooses for an NVIDIA GPU."""

SAME = {"BSD": "BSD-3-Clause", "BSD License": "BSD-3-Clause", "Proprietary": "NVIDIA's own", "": "BSD-3-Clause"}
"""What metadata says -> what the licence file says, for packages whose metadata names a family or nothing."""

LOOKED_UP = {"cycler", "jinja2", "kiwisolver", "mpmath", "sympy", *OF_NVIDIA}
OF_DEVELOPERS = {"dev", "docs"}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def name_of(requirement: str) -> str:
    return normal(re.split(r"[^\w.-]", requirement)[0])


def rows() -> dict[str, tuple[str, str, str]]:
    """Package -> extra, the package that needs it, licence."""
    page = (ROOT / "docs" / "licences.md").read_text().partition("## Packages")[2]
    found = re.findall(r"(?m)^\| ([\w-]+) \| ([\w-]+) \| ([\w-]*) \| ([^|]+) \|$", page)
    return {name: (extra, through, licence.strip()) for name, extra, through, licence in found if name != "package"}


def direct() -> dict[str, str]:
    """Package -> the extra, or ``always``, that names it first."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = {name_of(need): "always" for need in project["dependencies"]}
    for extra, needs in project["optional-dependencies"].items():
        for need in needs if extra not in OF_DEVELOPERS else ():
            found.setdefault(name_of(need), extra)
    return found


def test_every_requirement_has_a_row_and_every_row_is_required() -> None:
    listed = rows()
    assert {name: extra for name, (extra, through, _) in listed.items() if not through} == direct()
    for extra, through, _ in listed.values():
        assert not through or listed[through][0] in (extra, "always")


def test_what_installed_packages_need_has_a_row_too() -> None:
    listed = rows()
    for name in list(listed):
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        for need in needs:
            elsewhere = re.search(
                r"extra ==|sys_platform == .(win32|darwin)|platform_system == .Windows|os_name == .nt", need
            )
            cuda = name in ("torch", "onnxruntime-gpu") and re.match(r"nvidia-|cuda-|triton", need)
            if not elsewhere and not cuda:
                assert name_of(need) in listed, f"{name} needs {need}"


@pytest.mark.parametrize("name", sorted(rows()))
def test_the_licence_is_allowed_and_is_that_of_the_metadata(name: str) -> None:
    licence = rows()[name][2]
    if name in OF_NVIDIA:
        assert licence == "NVIDIA's own"
    elif name in OF_FILES:
        assert licence == OF_FILES[name]
    else:
        parts = re.split(r" AND | OR |[()]", licence.replace(" WITH LLVM-exception", ""))
        assert {part.strip() for part in parts if part.strip()} <= ALLOWED
    try:
        told = licence_of(metadata.distribution(name))
    except metadata.PackageNotFoundError:
        return
    assert licence == (SAME.get(told, licence if told.startswith("Copyright") else told) if name in LOOKED_UP else told)


def test_the_packages_that_the_page_explains_are_dependencies_or_known() -> None:
    page = (ROOT / "docs" / "licences.md").read_text()
    for word in ("FFmpeg", "LGPL", "LibRaw", "Qt", "NVIDIA", "AGPL-3.0"):
        assert word in page


SECURITY = (ROOT / "SECURITY.md").read_text()


def test_every_promise_of_the_security_page_names_tests_that_exist() -> None:
    promised = SECURITY.partition("## What is promised")[2].partition("## ")[0]
    lines = [line for line in promised.splitlines() if line.startswith("| ")][1:]
    assert len(lines) > 12
    for line in lines:
        named = re.findall(r"tests/[\w/]+\.py", line.split("|")[2])
        assert named, line
        for file in named:
            assert (ROOT / file).is_file(), file
            assert "def test_" in (ROOT / file).read_text(), file


def test_it_says_where_to_report_and_which_version_is_mended() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"{project['urls']['Source']}/security/advisories/new" in SECURITY
    assert project["urls"]["Source"] == REPOSITORY_URL
    assert f"| {'.'.join(__version__.split('.')[:2])}, the newest release | yes |" in SECURITY
