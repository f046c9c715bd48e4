"""A repository for Triton: its configurations by the schema of Triton's client, and their meaning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deploykit.errors import SpecError, UsageError
from deploykit.runtime.engine_record import EngineRecord, Profile
from deploykit.runtime.package.models import network_of, packaged_models
from deploykit.runtime.package.options import TritonOptions
from deploykit.runtime.package.triton import repository_files
from tests.cell_model import cell_spec, write_cell_model
from tests.dense_networks import brightener
from tests.triton_repository import CASES, config_of, repository_of


def configs(tmp_path: Path, case: str, options: TritonOptions | None = None) -> dict[str, Any]:
    _, repository = repository_of(tmp_path, case, options)
    return {folder.name: config_of(folder) for folder in repository.iterdir()}


@pytest.mark.parametrize("case", CASES)
def test_every_configuration_fits_the_schema_and_names_its_folder(case: str, tmp_path: Path) -> None:
    found = configs(tmp_path, case)
    steps = ("network",) if case == "tiles" else ("preprocess", "network", "postprocess")
    assert set(found) == {case, *(f"{case}_{step}" for step in steps)}
    assert all(config.name == name for name, config in found.items())
    assert case == "tiles" or len({config.max_batch_size for config in found.values()}) == 1


@pytest.mark.parametrize("case", sorted(set(CASES) - {"tiles"}))
def test_the_steps_are_joined_by_tensors_of_one_type_and_shape(case: str, tmp_path: Path) -> None:
    found = configs(tmp_path, case)
    ensemble = found[case]
    made = {each.name: (each.data_type, list(each.dims)) for each in ensemble.input}
    for step in ensemble.ensemble_scheduling.step:
        model = found[step.model_name]
        inputs = {each.name: (each.data_type, list(each.dims)) for each in model.input}
        outputs = {each.name: (each.data_type, list(each.dims)) for each in model.output}
        assert {name: made[tensor] for name, tensor in step.input_map.items()} == inputs
        assert set(step.output_map) <= set(outputs)
        made |= {tensor: outputs[name] for name, tensor in step.output_map.items()}
    assert {each.name: made[each.name] for each in ensemble.output} == {
        each.name: (each.data_type, list(each.dims)) for each in ensemble.output
    }


def test_a_dynamic_batch_is_batched_and_warmed_up_at_both_ends(tmp_path: Path) -> None:
    options = TritonOptions(max_batch=16, batch_window=0.5, instances=3, workers=4, device="cuda")
    found = configs(tmp_path, "keypoints", options)
    network = found["keypoints_network"]
    assert (network.max_batch_size, list(network.input[0].dims)) == (16, [3, 64, 64])
    assert network.dynamic_batching.max_queue_delay_microseconds == 500
    assert [(each.count, each.kind) for each in network.instance_group] == [(3, 1)]  # KIND_GPU
    warm = {each.batch_size: dict(each.inputs) for each in network.model_warmup}
    assert {size: list(inputs["images"].dims) for size, inputs in warm.items()} == {1: [3, 64, 64], 16: [3, 64, 64]}
    assert found["keypoints_preprocess"].instance_group[0].count == 4
    assert not found["keypoints_preprocess"].HasField("dynamic_batching")


def test_a_fixed_batch_has_its_whole_shape_and_is_not_batched(tmp_path: Path) -> None:
    network = configs(tmp_path, "fixed")["fixed_network"]
    assert (network.max_batch_size, list(network.input[0].dims)) == (0, [4, 3, 64, 64])
    assert not network.HasField("dynamic_batching")
    assert [each.batch_size for each in network.model_warmup] == [1]


def test_an_engine_runs_on_gpus_as_large_a_batch_as_its_profile(tmp_path: Path) -> None:
    write_cell_model(tmp_path / "best.onnx", batch="n", spec=cell_spec(dynamic=True))
    file = tmp_path / "best.trt"
    file.write_bytes(b"plan")
    profile = Profile(*((n, 3, 64, 64) for n in (1, 2, 4)))
    EngineRecord("tensorrt", "10.13", cell_spec(dynamic=True), "best.onnx", "0" * 64, profiles=(profile,)).write(file)
    (model,) = packaged_models([str(file)])
    files = repository_files(model, network_of(model))
    assert files["best_network/1/model.plan"] == file
    for name, text in files.items():
        if name.endswith("config.pbtxt"):
            (tmp_path / name).parent.mkdir(parents=True)
            (tmp_path / name).write_text(str(text))
    network = config_of(tmp_path / "best_network")
    assert (network.platform, network.backend, network.max_batch_size) == ("tensorrt_plan", "tensorrt", 4)
    assert network.instance_group[0].kind == 1  # KIND_GPU


def test_the_bytes_are_the_same_again_and_hold_no_path_of_this_machine(tmp_path: Path) -> None:
    texts = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        _, repository = repository_of(folder, "fixed")
        files = sorted(file for file in repository.rglob("*") if file.is_file())
        texts.append({str(file.relative_to(repository)): file.read_bytes() for file in files})
        assert "fixed_network/1/fixed.onnx.data" in texts[-1]
    assert texts[0] == texts[1]
    assert not [name for name, data in texts[0].items() if str(tmp_path).encode() in data]


def test_a_network_that_runs_in_tiles_is_called_by_a_model_that_is_not_batched(tmp_path: Path) -> None:
    found = configs(tmp_path, "tiles", TritonOptions(max_batch=4, workers=3))
    assert (found["tiles"].max_batch_size, found["tiles"].backend) == (0, "python")
    assert found["tiles"].instance_group[0].count == 3
    assert found["tiles_network"].max_batch_size == 4
    facts = json.loads((tmp_path / "repository" / "tiles" / "1" / "network.json").read_text())
    assert (facts["model"], facts["batch"]) == ("tiles_network", 4)


def test_a_network_for_raw_files_is_refused(tmp_path: Path) -> None:
    (model,) = packaged_models([str(brightener(tmp_path / "m.onnx", kind="tile", channels=4))])
    with pytest.raises(SpecError, match="takes the mosaics of RAW files, which Triton does not get"):
        repository_files(model, network_of(model))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_batch": 0}, "max_batch must be at least 1, got 0"),
        ({"batch_window": -1.0}, "batch_window must be 0 to 10000 milliseconds"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        TritonOptions(**options)
