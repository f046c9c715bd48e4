"""Tensors alone: which network of the ultralytics package they are of, and what is said to be assumed."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deploykit.errors import CheckpointError
from deploykit.models.checkpoint.reader import Checkpoint
from deploykit.models.families.ultralytics.build import build_graph
from deploykit.models.families.ultralytics.description import HEADS, Description
from deploykit.models.families.ultralytics.heads.pose import FreePose
from deploykit.models.families.ultralytics.model import from_checkpoint
from deploykit.models.families.ultralytics.variants import variants
from deploykit.models.registry import ReferenceModel, load_model
from tests.models.families.ultralytics.package_files import narrow, network, output_of, write

NETWORK = "SiLU activations and a batch-norm eps of 0.001, as {} has them: no tensor tells"
CLASSIFIER = "SiLU activations and a batch-norm eps of 1e-05, as {} has them: no tensor tells"
POOLING = "SPPF's first convolution has an activation, as all releases"
ANGLES = "its angles are computed as {} does it: no tensor tells"

SAID: dict[tuple[str, ...], tuple[str, ...]] = {
    ("yolov8n", "yolov8n_p2", "yolov8n_p6", "yolov8s_seg", "yolov8n_seg_p6", "yolov8n_pose"): (NETWORK, POOLING),
    ("yolov5nu", "yolov5n6u", "yolov10n", "yolov10s", "yolov10m", "yolov10b", "yolov10x"): (NETWORK, POOLING),
    ("yolo11n", "yolo11s", "yolo11m", "yolo11l", "yolo11x", "yolo11n_seg", "yolo11n_pose"): (NETWORK, POOLING),
    ("yolov8n_obb", "yolo11n_obb"): (NETWORK, POOLING, ANGLES),
    ("yolo26n", "yolo26n_p2", "yolo26n_p6", "yolo26m_seg", "yolo26n_pose"): (NETWORK,),
    ("yolo26n_obb", "yolo12n_obb"): (NETWORK, ANGLES),
    ("yolo12n", "yolo12l", "yolo12n_seg", "yolo12n_pose", "yolov9t", "yolov9m", "yolov9c", "yolov9e"): (NETWORK,),
    ("yolov9c_seg", "yolov9e_seg", "yolov3u", "yolov3_sppu", "yolov3_tinyu"): (NETWORK,),
    ("yolov8n_cls", "yolo11n_cls", "yolo12n_cls"): (CLASSIFIER,),
}  # fmt: skip
"""Published networks -> how what is assumed of them begins."""


def checkpoint_of(state: dict[str, Tensor]) -> Checkpoint:
    """A file that has nothing else; it need not be on the disk, nor its tensors in memory."""
    nothing: Any = {"yaml": None, "names": None, "stride": None, "modules": (), "metadata": {}, "notes": ()}
    return Checkpoint(Path("m.pt"), 0, "0" * 64, "torch-zip", "model", state_dict=state, **nothing)


def of_tensors(state: dict[str, Tensor]) -> ReferenceModel:
    model = from_checkpoint(checkpoint_of(state))
    assert model is not None
    return model


def meta_state(description: Description) -> dict[str, Tensor]:
    with torch.device("meta"):
        return build_graph(description).state_dict()


@pytest.mark.parametrize(
    ("name", "beginnings"),
    [(name, said) for names, said in SAID.items() for name in names],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_a_published_network_is_named_and_says_what_no_tensor_tells(name: str, beginnings: tuple[str, ...]) -> None:
    variant = variants()[name]
    model = of_tensors(meta_state(variant.description))
    typed = name.replace("_", "-")
    assert (model.name, model.family, model.spec.task) == (typed, variant.family, HEADS[variant.description.head])
    expected = [each.format(typed if "eps" in each else variant.family) for each in beginnings]
    assert len(model.spec.assumptions) == len(expected)
    assert [s for s, e in zip(model.spec.assumptions, expected, strict=True) if not s.startswith(e)] == []


def test_classifiers_of_yolo26_are_those_of_yolo11() -> None:
    """The layers are the same, and so is what they compute."""
    first, second = (variants()[name].description for name in ("yolo11n_cls", "yolo26n_cls"))
    assert first.rows == second.rows
    assert of_tensors(meta_state(second)).name == "yolo11n-cls"


@pytest.mark.parametrize("name", ["yolov8n", "yolo11n_obb", "yolo26n_seg", "yolov10n", "yolov8n_cls"])
def test_a_custom_width_is_named_by_its_family(name: str) -> None:
    description = narrow(name, 7)
    model = of_tensors(meta_state(description))
    family = variants()[name].family
    assert (model.name, model.family) == (f"{family.lower()}-custom", family)
    assert model.spec.assumptions[0].endswith(f"as {family} has them: no tensor tells")
    assert len(model.spec.classes) in (7, 0)


KEYPOINTS: dict[str, tuple[str, tuple[int, int], tuple[int, int], bool]] = {
    "seventeen of three": ("yolov8n_pose", (17, 3), (17, 3), False),
    "five of two": ("yolov8n_pose", (5, 2), (5, 2), False),
    "one of three": ("yolov8n_pose", (1, 3), (1, 3), False),
    "four of three": ("yolo11n_pose", (4, 3), (4, 3), True),
    "six of two": ("yolo11n_pose", (6, 2), (4, 3), True),
    "six of two, where a width tells": ("yolo26n_pose", (6, 2), (6, 2), False),
    "four of three, where a width tells": ("yolo26n_pose", (4, 3), (4, 3), False),
}


@pytest.mark.parametrize(("name", "built", "taken", "open_"), KEYPOINTS.values(), ids=KEYPOINTS)
def test_so_many_outputs_are_keypoints_of_two_or_three_values(
    name: str, built: tuple[int, int], taken: tuple[int, int], open_: bool
) -> None:
    model = of_tensors(meta_state(narrow(name, 1, kpt_shape=built)))
    head = model.module.get_submodule(f"model.{len(model.module.model) - 1}")
    assert isinstance(head, FreePose)
    assert head.kpt_shape == taken
    said = [text for text in model.spec.assumptions if "keypoints of" in text]
    assert said == (
        ["4 keypoints of 3 values (x, y, visibility), and not 6 of 2: no tensor tells; the package's own .pt file does"]
        if open_
        else []
    )


def test_the_deviations_of_training_tell_how_many_keypoints_there_are() -> None:
    """At full width the branch is as wide for both; a file that was not folded has two deviations a keypoint."""
    description = replace(variants()["yolo26n_pose"].description, width=1.0, kpt_shape=(6, 2), strides=())
    state = meta_state(description)
    assert any("keypoints of" in text for text in of_tensors(state).spec.assumptions)
    width = state["model.23.cv4_kpts.0.weight"].shape[1]
    model = of_tensors({**state, "model.23.cv4_sigma.0.weight": torch.empty(12, width, 1, 1, device="meta")})
    assert not any("keypoints of" in text for text in model.spec.assumptions)
    assert model.spec.output.kpt_dims == 2


STATE = meta_state(narrow("yolo26n_pose", 1, kpt_shape=(4, 2)))
HEAD = [key for key in STATE if key.startswith("model.23.")]
SHAPE = st.lists(st.sampled_from([0, 1, 2, 3, 4, 7, 16, 64, 2**17]), max_size=5)


@settings(max_examples=40)
@given(
    changes=st.dictionaries(st.one_of(st.sampled_from(HEAD), st.sampled_from([*STATE])), SHAPE, min_size=1, max_size=4),
    lost=st.lists(st.sampled_from([*HEAD, *STATE][:200]), max_size=3),
    more=st.dictionaries(
        st.from_regex(r"\Amodel\.(23|99|3)\.(cv4|m|0|proto|cv4_kpts\.0|linear)\.weight\Z"), SHAPE, max_size=2
    ),
)
def test_tensors_of_any_shapes_are_none_of_these_or_refused(
    changes: dict[str, list[int]], lost: list[str], more: dict[str, list[int]]
) -> None:
    state = {key: tensor for key, tensor in STATE.items() if key not in lost}
    state |= {key: torch.empty(shape, device="meta") for key, shape in {**changes, **more}.items()}
    with contextlib.suppress(CheckpointError):
        model = from_checkpoint(checkpoint_of(state))
        assert model is None or model.module.state_dict().keys() >= state.keys()


def test_tensors_of_another_network_with_numbered_layers_are_none_of_these() -> None:
    state = meta_state(narrow("yolov8n"))
    changed = {key: tensor for key, tensor in state.items() if not key.startswith("model.15.")}
    assert from_checkpoint(checkpoint_of(changed)) is None


def test_without_counters_and_below_a_prefix_it_is_the_same(tmp_path: Path) -> None:
    graph = network(narrow("yolo11n"))
    state = {f"model.{key}": t for key, t in graph.state_dict().items() if not key.endswith("num_batches_tracked")}
    model = load_model(write(tmp_path / "m.pt", {"state_dict": state}))
    assert model.family == "YOLO11"
    assert torch.equal(output_of(model.module), output_of(graph))
