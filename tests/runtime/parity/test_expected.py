"""What a network must give: kept in a file, and cut down to what a network takes."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.errors import ArtefactError, ParityError
from deploykit.runtime.arrays import Array
from deploykit.runtime.backends.fake import FakeSession
from deploykit.runtime.outputs import adapter_of
from deploykit.runtime.parity.differences import row_differences
from deploykit.runtime.parity.expected import Batch, ParityInputs, ReferenceOutputs, runs
from deploykit.runtime.parity.tolerance import Tolerance
from deploykit.runtime.session import TensorInfo
from deploykit.spec import InputSpec, KeypointSpec, ModelSpec, RawDetections

LAYOUT = RawDetections(cls=(5, 7), keypoints=(7, 10))
SPEC = ModelSpec("keypoints", InputSpec(size=(8, 8)), LAYOUT, ("cat", "dog"), KeypointSpec(("nose",)))


def expected(*, rows: int = 6, references: tuple[str, ...] = ("the checkpoint",)) -> ReferenceOutputs:
    """Two images of one size and one of another, in batches of one, two and three."""
    rng = np.random.default_rng(0)
    images = {
        label: rng.random((1, 3, *size), np.float32)
        for label, size in (("a", (8, 8)), ("b", (8, 8)), ("wide", (8, 16)))
    }
    batches = (Batch("a", ("a",)), Batch("wide", ("wide",)), Batch("three", ("b", "a", "a")))
    given_rows = {r: {label: rng.random((rows, 10)) * 100 for label in images} for r in references}
    computed = dict.fromkeys(references, "PyTorch CPU float64")
    return ReferenceOutputs(ParityInputs(images, batches, ("a note",)), given_rows, computed, LAYOUT)


def test_the_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    before = expected(references=("the checkpoint", "the fused model"))
    before.save(tmp_path / "e.npz")
    after = ReferenceOutputs.load(tmp_path / "e.npz")
    assert after.feeds.batches == before.feeds.batches
    assert after.feeds.notes == ("a note",)
    assert after.layout == LAYOUT
    assert dict(after.computed) == {"the checkpoint": "PyTorch CPU float64"}
    for label, image in before.feeds.images.items():
        np.testing.assert_array_equal(after.feeds.images[label], image)
        np.testing.assert_array_equal(
            after.rows["the checkpoint"][label], before.rows["the checkpoint"][label].astype(np.float32)
        )


@pytest.mark.parametrize(("layout", "later"), [(LAYOUT, set()), (RawDetections(cls_counts=False), {"cls_counts"})])
def test_of_later_fields_the_file_has_those_that_say_something(
    layout: RawDetections, later: set[str], tmp_path: Path
) -> None:
    """So that an older deploykit reads the others."""
    replace(expected(), layout=layout).save(tmp_path / "e.npz")
    assert ReferenceOutputs.load(tmp_path / "e.npz").layout == layout
    with np.load(tmp_path / "e.npz") as arrays:
        written = json.loads(arrays["about"].tobytes())["layout"]
    first = {"kind", "name", "box", "obj", "cls", "keypoints", "kpt_dims"}
    assert set(written) == first | later


def test_two_saves_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one.npz", "two.npz"):
        expected().save(tmp_path / name)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "other", "newer", "lacking"])
def test_what_cannot_be_read_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "e.npz"
    expected().save(path)
    data = path.read_bytes()
    if damage == "other":
        np.savez(path, x=np.zeros(3))
    elif damage in ("newer", "lacking"):
        about = {"newer": b'{"format": 2}', "lacking": b'{"format": 1, "labels": ["a"], "batches": [["a", ["a"]]]}'}
        np.savez(path, about=np.frombuffer(about[damage], np.uint8))
    else:
        path.write_bytes({"empty": b"", "cut": data[: len(data) // 2], "text": b"what"}[damage])
    with pytest.raises(ArtefactError, match=r"e\.npz"):
        ReferenceOutputs.load(path)


def test_what_a_pickle_holds_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "e.npz"
    np.savez(path, about=np.array([{"format": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ArtefactError, match="no readable reference values"):
        ReferenceOutputs.load(path)


ABOUT = {
    "format": 1,
    "reference": "r",
    "computed": "PyTorch",
    "layout": dataclasses.asdict(LAYOUT),
    "labels": ["a"],
    "batches": [["a", ["a"]]],
}
PLAIN = {"image0": np.zeros((1, 3, 8, 8), np.float32), "rows0": np.zeros((6, 10), np.float32)}


def written(path: Path, about: str, **arrays: Array) -> Path:
    np.savez_compressed(path, about=np.frombuffer(about.encode(), np.uint8), **{**PLAIN, **arrays})
    return path


def test_limits_that_are_infinite_come_back(tmp_path: Path) -> None:
    """Those of int8, in the first format's JSON."""
    before = dataclasses.replace(expected(), limits=Tolerance(pixels=math.inf, judged=False))
    before.save(tmp_path / "e.npz")
    assert ReferenceOutputs.load(tmp_path / "e.npz").limits == before.limits
    older = ReferenceOutputs.load(written(tmp_path / "older.npz", json.dumps(ABOUT)))
    assert older.limits == Tolerance()


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ("[" * 5000 + "]" * 5000, "nested deeper than 64 levels"),
        ("[]", "about must be an object"),
        ({"labels": "a"}, r"about\.labels must be a list"),
        ({"labels": [["a"]]}, r"about\.labels\[0\] must be of type str"),
        ({"batches": []}, "names images that it does not have"),
        ({"batches": [["a", []]]}, "the batch 'a' must have images of one size"),
        ({"batches": [["a"]]}, r"about\.batches\[0\] must have 2 entries"),
        ({"format": "1"}, r"about\.format must be of type int"),
        ({"format": 10**300}, "has format 1e.300, but this deploykit reads 1: update"),
        ({"limits": {"pixels": 10**400}}, r"about\.limits\.pixels must be a number of at most 64 bits"),
        ({"limits": {"pixels": math.nan}}, r"about\.limits\.pixels must be a number, got nan"),
        ({"layout": {"kind": "rows", "box": [0, 8]}}, "box must have 4 columns"),
    ],
)
def test_what_a_file_says_of_its_arrays_is_checked(tmp_path: Path, about: str | dict[str, Any], message: str) -> None:
    text = about if isinstance(about, str) else json.dumps({**ABOUT, **about})
    with pytest.raises(ArtefactError, match=message):
        ReferenceOutputs.load(written(tmp_path / "e.npz", text))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"image0": np.zeros((3, 8, 8), np.float32)},
            r"image 'a' must be float32 \(1, C, H, W\), got float32 \(3, 8, 8\)",
        ),
        ({"image0": np.zeros((2, 3, 8, 8), np.float32)}, r"got float32 \(2, 3, 8, 8\)"),
        ({"image0": np.zeros((1, 3, 0, 8), np.float32)}, r"got float32 \(1, 3, 0, 8\)"),
        ({"image0": np.zeros((1, 3, 8, 8))}, r"got float64"),
        ({"rows0": np.zeros(6, np.uint8)}, r"the values of 'a' must be a float32 array, got uint8"),
        ({"rows0": np.float32(1)}, r"must be a float32 array, got float32 \(\)"),
        ({"about": np.zeros(17_000_000, np.uint8)}, r"about\.npy has 17\.0 MB, and 16\.8 MB are left"),
    ],
)
def test_arrays_of_another_kind_are_refused(tmp_path: Path, arrays: dict[str, Array], message: str) -> None:
    np.savez_compressed(
        tmp_path / "e.npz", **{"about": np.frombuffer(json.dumps(ABOUT).encode(), np.uint8), **PLAIN, **arrays}
    )
    with pytest.raises(ArtefactError, match=message):
        ReferenceOutputs.load(tmp_path / "e.npz")


@given(st.integers(0, 4), st.booleans())
def test_only_what_is_taken_is_left(most: int, wide: bool) -> None:
    feeds = expected().feeds

    def takes(shape: tuple[int, ...]) -> bool:
        return shape[0] <= most and (wide or shape[3] == 8)

    left = feeds.restrict_to(takes)
    for batch in left.batches:
        assert takes((len(batch.images), *left.images[batch.images[0]].shape[1:]))
    assert {label for batch in left.batches for label in batch.images} == set(left.images)
    taken = {batch.name.split(",")[0] for batch in left.batches}
    refused = [note.split(" is not")[0] for note in left.notes if "is not compared" in note]
    assert taken | set(refused) == {batch.name for batch in feeds.batches}
    assert not taken & set(refused)
    if most >= 3 and wide:
        assert left.batches == feeds.batches


def test_a_network_that_takes_nothing_is_not_verified_by_nothing() -> None:
    with pytest.raises(ParityError, match=r"accepts none of the images to compare on \(a, b, wide\)"):
        expected().restrict_to(lambda _: False)


def test_a_value_that_is_not_finite_is_never_within_its_limit() -> None:
    rows = [np.ones((4, 10))]
    for value in (np.nan, np.inf):
        wrong = [rows[0].copy()]
        wrong[0][2, 7] = value
        for expected_rows, found in ((rows, wrong), (wrong, rows), (wrong, wrong)):
            report = row_differences(("a", "b", "x"), expected_rows, found, LAYOUT, Tolerance())
            assert [d.values for d in report if not d.ok] == ["keypoints"]


def test_another_number_of_rows_is_an_error() -> None:
    with pytest.raises(ParityError, match=r"b gives \(3, 10\) values on x, a gives \(4, 10\)"):
        row_differences(("a", "b", "x"), [np.ones((4, 10))], [np.ones((3, 10))], LAYOUT, Tolerance())


@pytest.mark.parametrize("slots", [None, 1, 2, 3, 5])
def test_a_network_of_any_batch_sees_every_image_of_a_batch(slots: int | None) -> None:
    """One of another fixed batch gets the images one after the other, each in all of its slots."""
    known = expected()
    by_sum = {
        float(image.sum()): rows
        for image, rows in zip(known.feeds.images.values(), known.rows["the checkpoint"].values(), strict=True)
    }
    fed: list[int] = []

    def answer(inputs: Mapping[str, Array]) -> dict[str, Array]:
        fed.append(len(inputs["images"]))
        return {"output": np.stack([by_sum[float(image[None].sum())] for image in inputs["images"]])}

    session = FakeSession(answer, inputs=[TensorInfo("images", (slots, 3, None, None), "float32")])
    seen = list(runs(known, "fake", session, adapter_of(SPEC).values))
    assert [batch.name for batch, *_ in seen] == ["a", "wide", "three"]
    for _, _, rows, found in seen:
        np.testing.assert_array_equal(np.stack(found), np.stack(rows))
    assert fed == {None: [1, 1, 3], 1: [1] * 5, 3: [3, 3, 3]}.get(slots, [slots] * 5)
