"""The chain of hashes: every file that lies beside is compared, and every change is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploykit.cli import main
from deploykit.errors import ArtefactError, NotFoundError
from deploykit.runtime.engine_record import EngineRecord, parity_report_path, record_path
from deploykit.runtime.integrity.chain import Chain, belonging, verify_chain
from deploykit.runtime.package.writing import write_tree
from deploykit.runtime.verified import digests, sha256
from deploykit.spec import Source
from tests.cell_model import cell_spec, write_cell_model

FILES = {
    "m.pt": "the spec in m.onnx",
    "m.pt.source.json": "",
    "m.onnx": "m.onnx.parity.json",
    "m.onnx.data": "m.onnx.parity.json",
    "m.onnx.parity.json": "",
    "m.trt": "m.trt.json",
    "m.trt.json": "",
    "m.trt.rest.onnx": "m.trt.json",
    "m.trt.parity.npz": "m.trt.json",
}
"""Every file of the chain -> one that names its hash; empty: it is what names others."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A checkpoint that was fetched, its export with external data, and an engine of two stages of that."""
    folder = tmp_path_factory.mktemp("chain")
    weights = folder / "m.pt"
    weights.write_bytes(b"checkpoint")
    (folder / "m.pt.source.json").write_text(json.dumps({"sha256": sha256(weights), "size": 10}))
    spec = replace(cell_spec(), source=Source(model="m", sha256=sha256(weights)))
    onnx = write_cell_model(folder / "m.onnx", spec=spec, external=True)
    data = folder / "m.onnx.data"
    parity_report_path(onnx).write_text(json.dumps({**digests(onnx, (data,), spec.source.sha256), "ok": True}))
    engine, rest, values = (folder / f"m.trt{ending}" for ending in ("", ".rest.onnx", ".parity.npz"))
    engine.write_bytes(b"plan")
    rest.write_bytes(b"rest")
    values.write_bytes(b"values")
    record = EngineRecord("tensorrt", "10.0", spec, onnx.name, sha256(onnx), size=4, sha256=sha256(engine))
    record = replace(record, onnx_parts={data.name: sha256(data)}, second_stage={".rest.onnx": sha256(rest)})
    replace(record, reports={".parity.npz": sha256(values)}).write(engine)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def folder(whole: dict[str, bytes], tmp_path: Path) -> Path:
    return written(whole, tmp_path)


def written(whole: dict[str, bytes], folder: Path) -> Path:
    for name, data in whole.items():
        (folder / name).write_bytes(data)
    return folder


def states(chain: Chain) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for link in chain.links:
        found.setdefault(link.state, set()).add(link.file.name)
    return found


def test_the_files_of_the_test_are_all_of_them(whole: dict[str, bytes]) -> None:
    assert set(whole) == set(FILES)


@pytest.mark.parametrize("start", ["m.pt", "m.onnx", "m.trt", ""])
def test_the_whole_chain_is_walked_from_any_of_its_files(start: str, folder: Path) -> None:
    chain = verify_chain(folder / start)
    assert states(chain) == {"ok": {name for name, by in FILES.items() if by}}
    assert chain.problem == ""
    assert {(link.file.name, link.named_by) for link in chain.links} >= {
        *((name, by) for name, by in FILES.items() if by), ("m.pt", "m.pt.source.json"), ("m.onnx", "m.trt.json"),
        ("m.pt", "m.trt.json"), ("m.onnx.data", "m.trt.json"),
    }  # fmt: skip


@given(data=st.data())
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_changed_bit_anywhere_differs_and_nothing_else_is_raised(
    whole: dict[str, bytes], tmp_path: Path, data: st.DataObject
) -> None:
    folder = written(whole, tmp_path)
    name = data.draw(st.sampled_from(sorted(FILES)))
    changed = bytearray(whole[name])
    at = data.draw(st.integers(0, 8 * len(changed) - 1))
    changed[at // 8] ^= 1 << at % 8
    (folder / name).write_bytes(changed)
    start = data.draw(st.sampled_from(["m.pt", "m.onnx", "m.trt", ""]))
    chain = verify_chain(folder / start)
    if FILES[name]:
        assert name in {link.file.name for link in chain.differing}
        assert chain.problem


@pytest.mark.parametrize("name", [name for name, by in FILES.items() if by and name not in ("m.trt", "m.onnx", "m.pt")])
def test_a_file_that_is_gone_is_absent(name: str, folder: Path) -> None:
    (folder / name).unlink()
    assert states(verify_chain(folder / "m.trt"))["absent"] == {name}


def test_an_engine_alone_says_that_the_rest_is_absent(folder: Path) -> None:
    for name in ("m.onnx", "m.onnx.data", "m.onnx.parity.json", "m.pt", "m.pt.source.json"):
        (folder / name).unlink()
    chain = verify_chain(folder / "m.trt")
    assert states(chain) == {
        "ok": {"m.trt", "m.trt.rest.onnx", "m.trt.parity.npz"},
        "absent": {"m.onnx", "m.onnx.data", "m.trt"},
    }
    assert chain.problem == ""  # of the engine itself the hash is named and right


@pytest.mark.parametrize("name", ["m.onnx.parity.json", "m.trt.json"])
def test_without_what_names_it_a_file_is_not_verified(name: str, folder: Path) -> None:
    (folder / name).unlink()
    for other in ("m.trt", "m.onnx", "m.onnx.parity.json", "m.trt.json"):
        if other != name.removesuffix(".json").removesuffix(".parity"):
            (folder / other).unlink(missing_ok=True)
    (model,) = (file for file in folder.iterdir() if file.name in ("m.trt", "m.onnx"))
    chain = verify_chain(model)
    assert chain.problem.startswith(f"nothing beside {model} names its hash")


def test_a_checkpoint_of_the_same_name_that_was_trained_further_differs(folder: Path) -> None:
    (folder / "old.pt").write_bytes((folder / "m.pt").read_bytes())
    (folder / "m.pt.source.json").unlink()
    (folder / "m.pt").write_bytes(b"checkpoint, trained further")
    (link,) = (link for link in verify_chain(folder / "m.onnx").links if "the spec" in link.named_by)
    assert (link.file.name, link.state) == ("old.pt", "ok")  # the one that it was made from lies there too
    (folder / "old.pt").unlink()
    (link,) = (link for link in verify_chain(folder / "m.onnx").links if "the spec" in link.named_by)
    assert (link.file.name, link.state) == ("m.pt", "differs")
    assert "m.onnx was made from another one" in link.says


def test_shards_are_hashed_as_one(folder: Path) -> None:
    whole = (folder / "m.pt").read_bytes()
    (folder / "m.pt").unlink()
    for number, part in enumerate((whole[:4], whole[4:])):
        (folder / f"w-{number + 1:05d}-of-00002.safetensors").write_bytes(part)
    assert states(verify_chain(folder / "m.onnx"))["ok"] >= {f"w-0000{n}-of-00002.safetensors" for n in (1, 2)}


@pytest.mark.parametrize(
    ("report", "change"),
    [
        ("m.onnx.parity.json", lambda about: {**about, "parts": {"../m.onnx.data": "0"}}),
        ("m.onnx.parity.json", lambda about: {**about, "checkpoint_sha256": "0" * 64}),
        ("m.trt.json", lambda about: {**about, "second_stage": {"/../../x": "0"}}),
        ("m.trt.json", lambda about: {**about, "onnx_parts": {"/etc/passwd": "0"}}),
    ],
)
def test_names_that_lead_elsewhere_are_not_followed(
    report: str, change: Callable[[dict[str, object]], object], folder: Path
) -> None:
    about = json.loads((folder / report).read_text())
    (folder / report).write_text(json.dumps(change(about)))
    assert verify_chain(folder / "m.trt").differing


def test_a_package_is_compared_with_its_lists(folder: Path, tmp_path: Path) -> None:
    package = tmp_path / "repository"
    write_tree(package, {"net/config.pbtxt": "a", "net/1/model.onnx": folder / "m.onnx", "net/1/m.onnx.data": "b"})
    assert verify_chain(package).problem == ""
    (package / "net" / "config.pbtxt").write_text("b")
    (package / "net" / "1" / "m.onnx.data").unlink()
    chain = verify_chain(package)
    assert states(chain) == {"ok": {"model.onnx"}, "differs": {"config.pbtxt"}, "absent": {"m.onnx.data"}}
    assert "config.pbtxt is not the file that" in chain.problem


def test_what_there_is_nothing_to_verify_of_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="has no model, no SHA256SUMS and no manifest"):
        verify_chain(tmp_path)
    with pytest.raises(NotFoundError):
        verify_chain(tmp_path / "none.onnx")
    (tmp_path / "m.onnx").write_bytes(b"no model")
    assert verify_chain(tmp_path / "m.onnx").differing
    (tmp_path / "notes.txt").write_bytes(b"text")
    with pytest.raises(ArtefactError, match="there is nothing to verify"):
        verify_chain(tmp_path / "notes.txt")


def test_what_belongs_to_a_model(folder: Path) -> None:
    names = {start: {file.name for file in belonging(folder / start)} for start in ("m.pt", "m.onnx", "m.trt")}
    assert names == {
        "m.pt": {"m.pt", "m.pt.source.json"},
        "m.onnx": {"m.onnx", "m.onnx.data", "m.onnx.parity.json"},
        "m.trt": {"m.trt", "m.trt.json", "m.trt.rest.onnx", "m.trt.parity.npz"},
    }


def test_the_command_says_each_link_and_its_exit_code(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(folder / "m.trt"), "--verify"]) == 0
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]} == {"ok"}
    (folder / "m.onnx").write_bytes((folder / "m.onnx").read_bytes() + b" ")
    assert main(["inspect", str(folder / "m.trt"), "--verify", "--json"]) == ArtefactError.exit_code
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert not told["ok"]
    assert {link["state"] for link in told["links"] if link["file"].endswith("m.onnx")} == {"differs"}
    assert f"{folder / 'm.onnx'} is not the file that m.trt.json names: SHA-256 " in err
    record_path(folder / "m.trt").unlink()
    assert main(["inspect", str(folder / "m.trt"), "--verify"]) == ArtefactError.exit_code
    assert "names its hash, so it cannot be verified" in capsys.readouterr().err
