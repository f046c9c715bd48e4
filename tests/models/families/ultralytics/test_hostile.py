"""Whatever a file says of its layers, it is built or refused in one line, quickly, and without much memory."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.errors import CheckpointError, UnknownLayerError
from deploykit.models.families.ultralytics.build import KINDS, build_graph
from deploykit.models.families.ultralytics.description import HEADS, Description
from deploykit.models.yolo_graph.layer_graph import LayerGraph

INF, NAN, HUGE = float("inf"), float("nan"), 10**9
SECONDS, MEGABYTES = 5.0, 200.0
CONV, DETECT = [-1, 1, "Conv", [16, 3, 2]], [[-1], 1, "Detect", ["nc"]]
CLASSIFY = [-1, 1, "Classify", ["nc"]]


def yaml_of(*rows: Any, head: Any = DETECT, **changes: Any) -> dict[str, Any]:
    return {"nc": 2, "backbone": list(rows), "head": [head], **changes}


def build(yaml: dict[str, Any]) -> LayerGraph:
    with torch.device("meta"):
        return build_graph(Description.from_yaml(yaml), {})


def assert_refused(make: Callable[[], Any], match: str, kind: type[CheckpointError] = CheckpointError) -> None:
    """With our own error, in one short line, quickly and without much memory."""
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(kind, match=match) as caught:
        make()
    assert time.monotonic() - start < SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < MEGABYTES
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 800


ROWS: dict[str, tuple[Any, str]] = {
    "nothing": (None, "layer 0 .* None, cannot be built"),
    "four letters": ("Conv", "layer 0 .* 'Conv', cannot be built"),
    "arguments missing": ([-1, 1, "Conv", None], r"expected \[from, repeats, layer, arguments\]"),
    "repeated a billion times": ([-1, HUGE, "Conv", [8, 3, 2]], "more than 1000 layers"),
    "repeated infinitely": ([-1, INF, "C2f", [8]], "cannot convert float infinity"),
    "repeated never": ([-1, 0, "C2f", [8]], "repeated 0 times"),
    "a billion blocks": ([-1, HUGE, "C3k2", [8]], "more than 1000 layers"),
    "a billion bottlenecks within": ([-1, 1, "RepNCSPELAN4", [8, 8, 8, HUGE]], "1 to 32"),
    "a billion pools": ([-1, 1, "SPPF", [16, 5, HUGE]], "1 to 32"),
    "a billion channels": ([-1, 1, "Conv", [HUGE, 3, 2]], "gives 1,073,741,824 values for an image"),
    "a billion parts": ([-1, 1, "CBLinear", [[HUGE] * 30]], "channels, expected 1 to 65536"),
    "endlessly wide": ([-1, 1, "C2f", [8, True, 1, 1e308]], "layer 0 .* cannot be built"),
    "no channels": ([-1, 1, "Conv", [0, 3, 2]], "gives 0 channels"),
    "code as channels": ([-1, 1, "Conv", ["__import__('os')", 3, 2]], "layer 0 .* cannot be built"),
    "code as an activation": ([-1, 1, "Conv", [8, 3, 2, None, 1, 1, "exit()"]], "neither|activation|cannot be built"),
    "fed by a later layer": ([1, 1, "Conv", [8, 3, 2]], "fed by 1, which is not an earlier layer"),
    "fed a million times": ([[-1] * 10**6, 1, "Concat", [1]], "which is not an earlier layer"),
    "a head in the middle": ([[-1], 1, "Detect", ["nc"]], "a head is the last layer"),
    "a part of an image": ([[-1, -1], 1, "CBFuse", [[0]]], "layer 0 .* cannot be built"),
    "upsampled a thousand times": ([-1, 1, "nn.Upsample", ["None", 1000, "nearest"]], "values for an image"),
    "heads of half a block": ([-1, 1, "A2C2f", [40]], "multiple of 32"),
}


@pytest.mark.parametrize("head", [DETECT, CLASSIFY], ids=["detect", "classify"])
@pytest.mark.parametrize(("row", "match"), ROWS.values(), ids=ROWS)
def test_a_hostile_row_is_refused_by_name(row: Any, match: str, head: Any) -> None:
    assert_refused(lambda: build(yaml_of(row, CONV, head=head)), match)


@pytest.mark.parametrize("name", ["GhostConv", "nn.Conv2d", "eval", "__import__('os')", "", "Conv\n"])
def test_an_unknown_layer_is_named_with_its_index_and_what_there_is(name: str) -> None:
    assert_refused(
        lambda: build(yaml_of(CONV, [-1, 1, name, [8]])), "layer 1 .*it has A2C2f, .*Conv", UnknownLayerError
    )


CHANGES: dict[str, dict[str, Any]] = {
    "no backbone": {"backbone": None},
    "a dictionary for a backbone": {"backbone": {"a": 1}},
    "a million rows": {"backbone": [CONV] * 10**6},
    "no head": {"head": []},
    "many classes": {"nc": "many"},
    "classes as code": {"nc": "x" * 10**6},
    "a billion classes": {"nc": HUGE},
    "600 digits of classes": {"nc": 10**600},
    "negative classes": {"nc": -1},
    "half a keypoint": {"kpt_shape": [17, 3, 2]},
    "a keypoint of nine values": {"kpt_shape": [17, 9]},
    "a billion keypoints": {"kpt_shape": [HUGE, 3]},
    "keypoints as text": {"kpt_shape": "a" * 10**6},
    "no bins": {"reg_max": 0},
    "a billion bins": {"reg_max": HUGE},
    "an unknown activation": {"activation": "nn.X()"},
    "an activation that is code": {"activation": "exit()"},
    "an activation of a megabyte": {"activation": "nn.ReLU(" + " " * 10**6},
    "a scale that is not there": {"scales": {"n": [1, 1, 1024]}, "scale": "z"},
    "a scale that is a list": {"scales": {"n": [1, 1, 1024]}, "scale": ["n"]},
    "scales of one number": {"scales": {"n": 1}},
    "scales as text": {"scales": "nsmlx"},
    "a scale of two numbers": {"scales": {"n": [1, 1]}},
    "an endless scale": {"scales": {"n": [INF, 1, 1024]}},
    "a million scales": {"scales": {str(i): [1, 1] for i in range(10**5)}, "scale": "z"},
    "depth that is no number": {"depth_multiple": NAN},
    "depth as text": {"depth_multiple": "x" * 10**6},
    "width of a billion": {"width_multiple": 1e9},
    "no width": {"width_multiple": None},
    "channels of an image as text": {"channels": "three"},
    "a billion channels of an image": {"ch": HUGE},
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_a_hostile_description_is_refused(changes: dict[str, Any]) -> None:
    assert_refused(lambda: build(yaml_of(CONV, **changes)), ".")


def test_a_description_that_holds_itself_is_refused() -> None:
    rows: list[Any] = [CONV]
    rows.append(rows)
    arguments: list[Any] = [8]
    arguments.append(arguments)
    yaml = yaml_of(CONV)
    yaml["scales"] = {"n": yaml}
    for hostile in (yaml_of(*rows), yaml_of([-1, 1, "Conv", arguments]), yaml):
        assert_refused(lambda hostile=hostile: build(hostile), ".")


def test_many_rows_of_many_modules_are_refused_in_sum() -> None:
    for kind in ("C2f", "A2C2f", "C2PSA", "RepNCSPELAN4"):
        row = [-1, 1, kind, [64, 64, 64, 32] if kind == "RepNCSPELAN4" else [64]]
        assert_refused(lambda row=row: build(yaml_of(*[[-1, 1, "Conv", [64]], *[row] * 900])), "more than 4000 modules")


JUNK = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 70),
        st.sampled_from([HUGE, -HUGE, 10**30, INF, NAN, 0.5, 1e308]),
        st.sampled_from(["None", "nc", "kpt_shape", "nearest", "nn.ReLU()", "nn.X()", "exit()", "", "True", "n"]),
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["n", "x"]), inner, max_size=2),
    max_leaves=6,
)
WIDTH = st.sampled_from([8, 16, 32, 64])
ROW = st.tuples(
    st.one_of(st.integers(-2, 2), st.lists(st.integers(-2, 2), max_size=3), JUNK),
    st.one_of(st.integers(1, 3), JUNK),
    st.sampled_from(KINDS),
    st.one_of(st.lists(st.one_of(WIDTH, JUNK), max_size=5), st.tuples(WIDTH).map(list)),
)


@settings(max_examples=400)
@given(
    rows=st.lists(st.one_of(st.just(CONV), ROW, JUNK), max_size=4),
    head=st.one_of(
        st.builds(lambda k, a: [[-1], 1, k, ["nc", *a]], st.sampled_from([*HEADS]), st.lists(JUNK, max_size=2)), JUNK
    ),
    changes=st.dictionaries(
        st.sampled_from(
            [
                "nc",
                "scales",
                "scale",
                "kpt_shape",
                "reg_max",
                "end2end",
                "activation",
                "ch",
                "channels",
                "width_multiple",
            ]
        ),
        JUNK,
        max_size=2,
    ),
)
def test_whatever_a_description_says_it_builds_or_is_refused(
    rows: list[Any], head: Any, changes: dict[str, Any]
) -> None:
    start, said = time.monotonic(), ""
    try:
        build(yaml_of(*rows, head=head, **changes))
    except CheckpointError as e:
        said = str(e)
    assert "\n" not in said
    assert len(said) < 800
    assert time.monotonic() - start < SECONDS
