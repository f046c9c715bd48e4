"""The page of a benchmark and its drawings: whole, safe to open, and of the numbers that were measured."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.errors import BackendError
from deploykit.runtime.backends.fake import FakeSession
from deploykit.runtime.bench.baseline import BaselineComparison
from deploykit.runtime.bench.benchmark import benchmark
from deploykit.runtime.bench.html import benchmark_page, variants_page
from deploykit.runtime.bench.noise import Ratio
from deploykit.runtime.bench.operators import Operator, OperatorProfile, operator_profile, read_profile
from deploykit.runtime.bench.report import Benchmark
from deploykit.runtime.bench.svg import WIDTH, histogram, intervals, over_runs, stacked
from deploykit.runtime.bench.variants import Variant, benchmark_variants
from deploykit.runtime.model_spec import session_spec
from deploykit.runtime.predict.predictor import Predictor
from deploykit.spec import InputSpec, ModelSpec, RawDetections, Source
from tests.cell_model import cell_spec, write_cell_model

EVIL = "<img src=x onerror=alert(1)>&\"'"
SPEC = ModelSpec("detect", InputSpec(size=(64, 64)), RawDetections(), ("thing",), source=Source(model=EVIL))
PROFILE = OperatorProfile(5, (Operator("Conv", 3, 4.0), Operator(EVIL, 1, 1.0)), (Operator("n", 1, 2.0),), 0.5)


def predictor() -> Predictor:
    return Predictor(FakeSession(lambda inputs: {"output": np.zeros((1, 5, 6), np.float32)}, spec=SPEC))


def report(runs: int = 12) -> Benchmark:
    return benchmark(predictor, runs=runs, warmup=0)


def safe(page: str) -> None:
    """Nothing is fetched, nothing runs, and foreign text is text."""
    assert not re.search(
        r"(?i)<(script|img|link|iframe|object|image|use)\b|\bsrc=|href=|url\(|@import|javascript:",
        page.replace("&lt;img src=x", ""),
    )
    assert EVIL not in page
    assert "default-src 'none'" in page
    assert re.findall('https?://[^"]*', page) == ["http://www.w3.org/2000/svg"] * page.count("<svg")
    for drawing in re.findall("<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(drawing)


def test_the_page_has_the_numbers_and_is_whole() -> None:
    found = report()
    page = benchmark_page(found, [("file", EVIL), ("threads", "2")], profile=PROFILE)
    safe(page)
    assert f"{found.end_to_end.total.p50:.2f} ms end to end" in page
    assert page.count("<svg") == 5
    for word in ("decode", "letterbox", "inference", "postprocess", "Conv", "between operators", "peak", "threads"):
        assert word in page
    assert "Too few runs for p99" in page


def test_without_a_profile_the_page_says_why() -> None:
    page = benchmark_page(report(2), [], no_profile="no profile <here>")
    assert "no profile &lt;here&gt;" in page
    safe(page)


def test_the_verdict_of_a_baseline_is_on_the_page() -> None:
    baseline = BaselineComparison(EVIL, 0.05, {"end_to_end": Ratio(1.3, 1.2, 1.4)}, ("versions: a to b",))
    page = benchmark_page(report(2), [], baseline=baseline)
    safe(page)
    assert "1.30 (1.20 to 1.40) times the median" in page
    assert "slower than the baseline" in page
    assert "versions: a to b" in page


def test_the_page_of_variants_has_each_with_its_interval() -> None:
    found = benchmark_variants([Variant(EVIL, predictor), Variant("b", predictor)], rounds=11)
    page = variants_page(replace(found, left_out={"c": "no <gpu>"}), [("machine", "m")])
    safe(page)
    assert page.count("<svg") == 3
    assert "c does not run here: no &lt;gpu&gt;" in page


values = st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=60)


@settings(max_examples=60)
@given(values)
def test_drawings_are_well_formed_and_within_their_frame(times: list[float]) -> None:
    ratios = {f"v{i}": Ratio(value, value / 2, math.inf if i % 2 else value * 2) for i, value in enumerate(times[:5])}
    for text in (
        histogram(times, {"p50": float(np.median(times)), "max": max(times)}),
        over_runs(times),
        stacked({f"s{i}": value for i, value in enumerate(times[:7])}),
        intervals(ratios, "v0"),
    ):
        drawing = ElementTree.fromstring(text)
        _, _, width, height = map(float, drawing.attrib["viewBox"].split())
        assert width == WIDTH
        for element in drawing.iter():
            for name in ("x", "cx", "x1", "x2"):
                assert -0.1 <= float(element.attrib.get(name, 0)) <= width + 0.1
            for name in ("y", "cy", "y1", "y2"):
                assert -0.1 <= float(element.attrib.get(name, 0)) <= height + 0.1
            assert float(element.attrib.get("width", 0)) >= 0


def test_the_bars_of_a_histogram_count_every_value() -> None:
    times = [float(value) for value in np.random.default_rng(0).normal(10, 1, 100)]
    counts = [int(text) for text in re.findall(r": (\d+)</title>", histogram(times, {}))]
    assert sum(counts) == 100
    assert "lie beyond" not in histogram(times, {})
    far = histogram([*times, *times, 1000.0], {})
    assert "1 of 201 lie beyond" in far
    assert sum(int(text) for text in re.findall(r": (\d+)</title>", far)) == 200


def event(name: str, ts: int, dur: int, op: str = "") -> dict[str, object]:
    return {
        "cat": "Node" if op else "Session",
        "name": name,
        "ts": ts,
        "dur": dur,
        "args": {"op_name": op} if op else {},
    }


def test_a_profile_counts_the_calls_after_the_warm_ones(tmp_path: Path) -> None:
    import json

    events = [event("session_initialization", 0, 5)]
    for call in range(4):
        begin = 1000 * (call + 1)
        slow = 100 if call < 2 else 1
        events += [
            event("model_run", begin, 500 * slow if call < 2 else 500),
            event("a_kernel_time", begin + 10, 200 * slow, "Conv"),
            event("b_kernel_time", begin + 220, 100 * slow, "Conv"),
            event("c_kernel_time", begin + 330, 50, "Add"),
            event("c_fence_before", begin + 331, 40, "Add"),
        ]
    file = tmp_path / "profile.json"
    file.write_text(json.dumps(events))
    found = read_profile(file, warm=2)
    assert found.runs == 2
    assert found.operators == (Operator("Conv", 2, 0.3), Operator("Add", 1, 0.05))
    assert found.nodes[0] == Operator("a (Conv)", 1, 0.2)
    assert found.other_ms == pytest.approx(0.15)
    assert found.total_ms == pytest.approx(0.5)
    with pytest.raises(BackendError, match="expected more than 4 calls"):
        read_profile(file, warm=4)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[{"name": "model_run", "cat": "Node"}]'])
def test_another_file_is_no_profile(tmp_path: Path, text: str) -> None:
    file = tmp_path / "profile.json"
    file.write_text(text)
    with pytest.raises(BackendError, match="profile"):
        read_profile(file)


def test_onnx_runtime_names_the_operators_of_a_real_file(tmp_path: Path) -> None:
    model = write_cell_model(tmp_path / "cells.onnx", spec=cell_spec())
    images = report(1).images
    found = operator_profile(
        model, images, lambda session: Predictor(session, session_spec(session, "cells")), threads=1
    )
    assert found is not None
    assert found.runs == 5
    assert found.operators
    assert all(one.ms >= 0 and one.count >= 1 for one in found.operators)
    assert found.total_ms > 0
    assert sorted(found.to_dict()) == ["nodes", "operators", "other_ms", "runs"]
