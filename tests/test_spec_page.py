"""The page about specs: its examples are specs, and it names every field."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest

from deploykit.spec import OUTPUTS, Fit, InputSpec, ModelSpec, Output, Source, Thresholds
from tests.test_layering import ROOT

PAGE = (ROOT / "docs" / "spec.md").read_text()
EXAMPLES = [json.loads(text) for text in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)]
OURS = sorted(kind for kind, output in OUTPUTS.items() if output.__module__.startswith("deploykit."))


@pytest.mark.parametrize("kind", OURS)
def test_every_kind_of_output_has_an_example_with_all_of_its_fields(kind: str) -> None:
    (example,) = (example for example in EXAMPLES if example["output"]["kind"] == kind)
    spec = ModelSpec.from_json(json.dumps({"input": {}, **example}))
    assert isinstance(spec.output, Output)
    assert set(example["output"]) == {field.name for field in dataclasses.fields(spec.output)}


@pytest.mark.parametrize("part", [ModelSpec, InputSpec, Fit, Thresholds, Source])
def test_every_field_is_on_the_page(part: type) -> None:
    missing = [field.name for field in dataclasses.fields(part) if f"`{field.name}`" not in PAGE]
    assert not missing
