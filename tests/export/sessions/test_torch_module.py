"""A checkpoint behind the runtime's session: what it takes, gives and refuses."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

import deploykit
from deploykit.errors import BackendError, CheckpointError, UsageError
from deploykit.export.options import OnnxOptions
from deploykit.export.sessions.torch_module import TorchSession, open_torch_session, spec_of_module
from deploykit.runtime.arrays import Array
from deploykit.spec import METADATA_KEY, ModelSpec, NmsOutputs
from tests.cell_model import cell_spec
from tests.narrow import few_layers, graph_of, model_of


def noise(*shape: int) -> Array:
    return np.random.default_rng(3).random(shape, np.float32)


def test_it_takes_any_batch_and_any_good_size(checkpoint: Path) -> None:
    session, spec = open_torch_session(checkpoint)
    assert session.metadata == {METADATA_KEY: spec.to_json()}
    assert (spec.input.dynamic, spec.classes) == ("shape", ("cat", "dog"))
    assert [str(t) for t in (*session.inputs, *session.outputs)] == ["float32 (?, 3, ?, ?)", "float32 (?, ?, ?)"]
    with session:
        for batch, height, width, rows in ((1, 16, 16, 15), (2, 32, 48, 90)):
            assert session.run({"images": noise(batch, 3, height, width)})["output"].shape == (batch, rows, 16)


def test_exact_means_float64_and_nothing_else() -> None:
    model = model_of("few", num_keypoints=3)
    spec = spec_of_module(model)
    image = noise(2, 3, 32, 32)
    single, double = (
        TorchSession(model.module, spec, exact=exact).run({"images": image})["output"] for exact in (False, True)
    )
    assert (single.dtype, double.dtype) == (np.float32, np.float64)
    assert 0 < np.abs(single - double).max() < 1e-3
    # The model that was lent is not converted.
    assert {p.dtype.itemsize for p in model.module.parameters()} == {4}


def test_the_folded_checkpoint_gives_the_networks_numbers(checkpoint: Path) -> None:
    session, _ = open_torch_session(checkpoint, exact=True)
    network = graph_of(few_layers(num_keypoints=3), objectness=3.0).half().double()
    image = noise(1, 3, 32, 64)
    expected = network(torch.from_numpy(image).double()).numpy()
    assert np.abs(session.run({"images": image})["output"] - expected).max() < 1e-3


def test_what_it_cannot_take_is_said(checkpoint: Path) -> None:
    session, _ = open_torch_session(checkpoint)
    with pytest.raises(BackendError, match="inputs are images; got image"):
        session.run({"image": noise(1, 3, 32, 32)})
    with pytest.raises(BackendError, match=r"must be float32 \(\?, 3, \?, \?\), got float64"):
        session.run({"images": noise(1, 3, 32, 32).astype(np.float64)})
    with pytest.raises(BackendError, match="PyTorch failed: "):
        session.run({"images": noise(1, 3, 40, 40)})  # not a multiple of the stride
    session.close()
    session.close()
    with pytest.raises(BackendError, match="is closed"):
        session.run({"images": noise(1, 3, 32, 32)})


class _Counting(torch.nn.Module):
    """The few layers, and with how many threads torch ran them."""

    def __init__(self) -> None:
        super().__init__()
        self.model = model_of("few", num_keypoints=3)
        self.seen: list[int] = []

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.seen.append(torch.get_num_threads())
        return self.model.module(image)


def test_threads_are_set_for_a_run_and_put_back_after_it() -> None:
    module = _Counting()
    spec = spec_of_module(module.model)
    own = torch.get_num_threads()  # the fixture's 1
    session = TorchSession(module, spec, threads=own + 2)
    assert session.threads == own + 2
    assert TorchSession(module, spec).threads == own
    session.run({"images": noise(1, 3, 32, 32)})
    assert (module.seen, torch.get_num_threads()) == ([own + 2], own)
    with pytest.raises(BackendError, match="PyTorch failed"):
        session.run({"images": noise(1, 3, 40, 40)})
    assert torch.get_num_threads() == own
    TorchSession(module, spec).run({"images": noise(1, 3, 32, 32)})
    assert module.seen == [own + 2, own + 2, own]


def test_sessions_with_different_threads_do_not_leave_each_others_number_behind() -> None:
    own = torch.get_num_threads()
    modules = [_Counting() for _ in range(3)]
    sessions = [TorchSession(m, spec_of_module(m.model), threads=own + i) for i, m in enumerate(modules)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda i: sessions[i % 3].run({"images": noise(1, 3, 32, 32)}), range(30)))
    assert [set(m.seen) for m in modules] == [{own}, {own + 1}, {own + 2}]
    assert torch.get_num_threads() == own


def test_threads_reach_a_checkpoints_session(checkpoint: Path) -> None:
    with deploykit.open_session(checkpoint, threads=3) as session:
        assert session.threads == 3
    with pytest.raises(UsageError, match="threads must be at least 1, got 0"):
        deploykit.open_session(checkpoint, threads=0)
    assert open_torch_session(checkpoint, threads=2)[0].threads == 2


def test_another_number_of_outputs_than_the_spec_names_is_told() -> None:
    spec = ModelSpec("detect", cell_spec().input, NmsOutputs(), ("cat",))
    with (
        TorchSession(model_of("few").module, spec) as session,
        pytest.raises(BackendError, match="gave 1 output, the spec names num_dets, boxes, scores, labels, num_cand"),
    ):
        session.run({"images": np.zeros((1, 3, 64, 64), np.float32)})


def test_a_checkpoint_is_predicted_with_like_an_export(checkpoint: Path, tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (96, 160, 3), np.uint8)
    deploykit.export_onnx(
        checkpoint, options=OnnxOptions(exporter="legacy"), dynamic="shape", out=tmp_path / "m.onnx", check=False
    )
    with deploykit.load(checkpoint, max_det=10) as ours, deploykit.load(tmp_path / "m.onnx", max_det=10) as theirs:
        a, b = ours(image), theirs(image)
    assert len(a) == len(b) == 10
    assert np.abs(a.scores - b.scores).max() < 1e-4
    assert np.abs(a.boxes - b.boxes).max() < 0.01


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "noise.pt").write_bytes(noise(100).tobytes())
    with pytest.raises(CheckpointError, match=r"noise\.pt"):
        open_torch_session(tmp_path / "noise.pt")
