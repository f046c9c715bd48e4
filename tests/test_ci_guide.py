"""The page on CI: its workflows are the files beside it, their commands parse, and its table has the limits."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploykit.cli import command_parser
from deploykit.export.parity.tolerances import LIMITS
from deploykit.runtime.parity.tolerance import Tolerance

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "guides" / "ci.md").read_text()
FILES = sorted((ROOT / "docs" / "ci").glob("*.yml"))


def commands_in(value: Any) -> list[str]:
    """The lines of ``run`` and ``script`` that call deploykit, wherever they are."""
    if isinstance(value, dict):
        return [line for each in value.values() for line in commands_in(each)]
    if isinstance(value, list):
        return [line for each in value for line in commands_in(each)]
    return [line for line in str(value).splitlines() if line.startswith("deploykit ")]


def test_there_are_two_workflows() -> None:
    assert [file.name for file in FILES] == ["gitlab-ci.yml", "verify.yml"]


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.name)
def test_a_workflow_is_on_the_page_as_it_is(file: Path) -> None:
    assert f"```yaml\n{file.read_text()}```\n" in PAGE


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.name)
def test_a_workflow_verifies_with_commands_that_parse_and_keeps_the_file(file: Path) -> None:
    found = yaml.safe_load(file.read_text())
    lines = commands_in(found)
    parsed = [command_parser(words).parse_args(words) for words in (shlex.split(line)[1:] for line in lines)]
    (junit,) = {str(args.junit) for args in parsed if hasattr(args, "junit")}
    kept = re.findall(r"(?:path|junit): (\S+\.xml)", file.read_text())
    assert kept == [junit]


def test_the_github_workflow_caches_and_uploads_even_if_it_fails() -> None:
    found = yaml.safe_load((ROOT / "docs" / "ci" / "verify.yml").read_text())
    steps = found["jobs"]["verify"]["steps"]
    assert any(step.get("with", {}).get("cache") == "pip" for step in steps)
    (upload,) = (step for step in steps if "upload-artifact" in step.get("uses", ""))
    assert upload["if"] == "always()"


def test_the_table_has_every_limit() -> None:
    names = [f.name for f in dataclasses.fields(Tolerance) if f.name != "judged"]
    rows = re.findall(r"(?m)^\| `(\w+)` \| [^|]+ \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", PAGE)
    assert {row[0] for row in rows} == set(names)
    for name, *values in rows:
        assert values == [f"{getattr(LIMITS[kind], name):g}" for kind in ("fp32", "fp16", "bf16")]
