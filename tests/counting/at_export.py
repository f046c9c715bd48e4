"""The export's floor: what follows from the values is their whole number."""

from __future__ import annotations

import numpy as np

from deploykit.export.matching import Matching
from deploykit.export.outputs import ExportAdapter
from deploykit.runtime.arrays import Array
from deploykit.runtime.parity.tolerance import Tolerance
from tests.counting.output import CountOutput


class CountExport(ExportAdapter[CountOutput]):
    def match(
        self, names: tuple[str, str, str], expected: list[Array], found: list[Array], limits: Tolerance
    ) -> list[Matching]:
        pairs = zip(expected, found, strict=True)
        same = sum(int(np.rint(a[0]) == np.rint(b[0])) for a, b in pairs)
        return [Matching(*names, "values", len(expected), len(found), same, 0, 1.0, 0.0, None, limits)]
