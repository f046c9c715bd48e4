"""Reference values of earlier exports: which ones are taken, and what makes them be computed again."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from deploykit.export.options import OnnxOptions, PrecisionOptions
from deploykit.export.parity import reference_cache, verification
from deploykit.export.parity.inputs import make_parity_inputs
from deploykit.export.parity.reference_cache import SWITCH, keep_values, kept_values, key_of
from deploykit.export.to_onnx import onnx_from_model
from deploykit.models.registry import ReferenceModel
from deploykit.runtime.backends import kept_bytes
from deploykit.runtime.parity.expected import ParityInputs
from deploykit.spec import ModelSpec
from tests.heard import Heard
from tests.narrow import model_of


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of kept values, with the cache switched on."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(SWITCH)
    return tmp_path / "cache" / "deploykit" / "references"


def inputs(model: ReferenceModel) -> tuple[nn.Module, ModelSpec, ParityInputs]:
    spec = replace(model.spec, input=replace(model.spec.input, size=(64, 64)))
    return model.module, spec, make_parity_inputs(spec)


def export(out: Path, **options: Any) -> tuple[Any, list[str]]:
    heard = Heard()
    asked = OnnxOptions(exporter="legacy")  # which is quicker
    return onnx_from_model(model_of("few"), out=out, img=64, progress=heard, options=asked, **options), heard.messages


def test_a_later_export_in_any_precision_takes_the_values_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    first, said = export(tmp_path / "a.onnx")
    assert said == []
    assert len(list(folder.iterdir())) == 1

    def never(*args: object, **options: object) -> None:
        raise AssertionError("reference values are computed again")

    monkeypatch.setattr(verification, "expect", never)
    again, said = export(tmp_path / "a.onnx")
    assert [text for text in said if "earlier" in text] == [
        f"reference values of an earlier export are used: {SWITCH}=0 computes them again"
    ]
    assert again.parity.differences == first.parity.differences
    assert again.parity.references == {"the checkpoint": "PyTorch CPU float64, of an earlier export"}
    for precision in ("fp16", "bf16"):
        half, said = export(tmp_path / "half.onnx", precision=PrecisionOptions(precision))  # type: ignore[arg-type]
        assert half.parity.ok
        assert said
    monkeypatch.setenv(SWITCH, "0")
    with pytest.raises(AssertionError, match="computed again"):
        export(tmp_path / "a.onnx")


def change_weight(module: nn.Module) -> None:
    with torch.no_grad():
        next(module.parameters()).view(-1)[3] += 1e-7


def change_eps(module: nn.Module) -> None:
    next(m for m in module.modules() if isinstance(m, nn.BatchNorm2d)).eps = 2e-3


def change_activation(module: nn.Module) -> None:
    owner = next(m for m in module.modules() if isinstance(getattr(m, "act", None), nn.SiLU))
    owner.act = nn.ReLU()


def change_buffer(module: nn.Module) -> None:
    next(b for b in module.buffers() if b.is_floating_point()).add_(1e-6)


@pytest.mark.parametrize("change", [change_weight, change_eps, change_activation, change_buffer])
def test_whatever_changes_the_network_changes_the_key(change: Callable[[nn.Module], None]) -> None:
    module, spec, feeds = inputs(model_of("few"))
    key = key_of(module, spec, feeds)
    assert key is not None
    assert key_of(*inputs(model_of("few"))) == key
    change(module)
    assert key_of(module, spec, feeds) not in (None, key)


def test_images_the_spec_and_the_source_are_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    module, spec, feeds = inputs(model_of("few"))
    label, image = next(iter(feeds.images.items()))
    nudged = image.copy()
    nudged[0, 0, 0, 0] += 1e-6
    keys = [
        key_of(module, spec, feeds),
        key_of(module, spec, replace(feeds, images={**feeds.images, label: nudged})),
        key_of(module, spec, replace(feeds, images=dict(reversed(feeds.images.items())))),
        key_of(module, replace(spec, thresholds=replace(spec.thresholds, conf=0.0)), feeds),
    ]
    monkeypatch.setattr(reference_cache, "_code", lambda: "another source")
    assert len({*keys, key_of(module, spec, feeds)}) == 5
    assert None not in keys


class Foreign(nn.Identity):
    """A layer of another package."""


@pytest.mark.parametrize(
    "attribute",
    [lambda x: x, functools.partial(print), {1: [print]}, object(), torch.ones(2), [torch.ones(2)], np.ones(9)],
    ids=lambda value: type(value).__name__,  # no address: two processes of tests must give it the same name
)
def test_an_attribute_that_does_not_tell_its_value_is_not_kept(attribute: object) -> None:
    module, spec, feeds = inputs(model_of("few"))
    next(module.children()).something = attribute  # type: ignore[assignment]
    assert key_of(module, spec, feeds) is None


def test_layers_and_hooks_of_others_are_not_kept() -> None:
    module, spec, feeds = inputs(model_of("few"))
    module.add_module("extra", Foreign())
    assert key_of(module, spec, feeds) is None
    module, spec, feeds = inputs(model_of("few"))
    next(module.children()).register_forward_hook(lambda *_: None)
    assert key_of(module, spec, feeds) is None


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text"])
def test_a_damaged_file_is_computed_again(damage: str, folder: Path) -> None:
    _, _, feeds = inputs(model_of("few"))
    values = {label: np.arange(6.0).reshape(2, 3) + i for i, label in enumerate(feeds.images)}
    assert kept_values("key", feeds) is None
    keep_values("key", values)
    found = kept_values("key", feeds)
    assert found is not None
    assert all(found[label].tobytes() == values[label].tobytes() for label in values)
    file = folder / "key.npz"
    data = bytearray(file.read_bytes())
    middle = data.index(values[next(iter(values))].tobytes())
    data[middle] ^= 1
    file.write_bytes({"cut": data[:-30], "flipped": bytes(data), "empty": b"", "text": b"values"}[damage])
    assert kept_values("key", feeds) is None
    keep_values("key", values)
    assert kept_values("key", feeds) is not None


def test_what_was_not_used_for_longest_goes_first(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    _, _, feeds = inputs(model_of("few"))
    values = {label: np.zeros((100, 10)) for label in feeds.images}
    keep_values("a", values)
    size = (folder / "a.npz").stat().st_size
    monkeypatch.setattr(kept_bytes, "MOST", int(3.5 * size))
    for key in "bc":
        keep_values(key, values)
    for time, key in enumerate("cba"):
        os.utime(folder / f"{key}.npz", (time, time))
    assert kept_values("c", feeds) is not None  # and so it is the newest
    keep_values("d", values)
    assert sorted(file.name for file in folder.iterdir()) == ["a.npz", "c.npz", "d.npz"]
    keep_values("e", {label: np.zeros((100, 100)) for label in feeds.images})  # too large for any
    assert not (folder / "e.npz").exists()


def test_a_cache_that_cannot_be_written_costs_no_export(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    report, said = export(tmp_path / "a.onnx")
    assert report.parity.ok
    assert said == []
