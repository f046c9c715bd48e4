"""Specs as JSON: what is read predicts on an image, or says why not."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from deploykit.runtime.predict.predictor import Predictor
from deploykit.runtime.spec_file import read_spec
from deploykit.spec.checks import MAX_INPUT
from tests.fuzz.mutate import changed_json, json_text
from tests.fuzz.target import Files, Target
from tests.test_spec_limits import IMAGE, SPECS, network, written


class Specs(Target):
    """The spec of a model, of every kind of output, in a file; the network that goes with it gives random values."""

    name, memory = "specs", 256 << 20

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.patch = pytest.MonkeyPatch()
        self.patch.setenv(MAX_INPUT, "0.02")
        self.seeds = {name: written(spec) for name, spec in SPECS.items()}
        self.networks = {name: network(spec) for name, spec in SPECS.items()}

    def make(self, random: Random) -> Files:
        name = random.choice(sorted(SPECS))
        changed = changed_json(random, self.seeds[name])
        return {"spec.json": json_text(random, changed), "network": name.encode()}

    def take(self, files: Files) -> None:
        spec = read_spec(self.written(files))
        assert spec is not None
        spec.to_json()
        Predictor(self.networks[files["network"].decode()], spec)(IMAGE)

    def close(self) -> None:
        self.patch.undo()


TARGET = Specs
