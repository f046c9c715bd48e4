"""Bills of materials: what a wheel brings and requires, what is installed, and whether both are valid CycloneDX."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import tempfile
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.cli import main
from deploykit.doctor.sbom import IDENTIFIERS, licence_of, of_environment, of_wheel
from deploykit.version import __version__


def package(folder: Path, fields: str, name: str = "some-package") -> metadata.Distribution:
    place = folder / f"{name}-1.0.dist-info"
    place.mkdir(parents=True, exist_ok=True)
    (place / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: 1.0\n{fields}\n")
    return metadata.PathDistribution(place)


def check_valid(document: dict[str, Any]) -> None:
    """The rules of the format that JSON Schema alone cannot state, and the schema itself where its package is here."""
    references = [document["metadata"]["component"]["bom-ref"], *(each["bom-ref"] for each in document["components"])]
    assert len(set(references)) == len(references)
    for each in document["dependencies"]:
        assert {each["ref"], *each["dependsOn"]} <= set(references)
    assert document["specVersion"] == "1.6"
    if importlib.util.find_spec("cyclonedx"):
        from cyclonedx.schema import SchemaVersion
        from cyclonedx.validation.json import JsonStrictValidator

        assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(document)) is None


@pytest.mark.parametrize(
    ("fields", "licence"),
    [
        ("License-Expression: MIT AND (Apache-2.0 OR BSD-2-Clause)", "MIT AND (Apache-2.0 OR BSD-2-Clause)"),
        ("License: Apache 2.0\nClassifier: License :: OSI Approved :: Apache Software License", "Apache-2.0"),
        ("License: BSD\nClassifier: License :: OSI Approved :: BSD License", "BSD"),
        ("Classifier: License :: OSI Approved :: MIT License", "MIT"),
        ("License: UNKNOWN\nClassifier: License :: OSI Approved :: ISC License (ISCL)", "ISC"),
        ("License: A text that goes on and on, and is no name of a licence at all", ""),
        ("Classifier: License :: OSI Approved :: BSD License\nClassifier: License :: Public Domain",
         "BSD License OR Public Domain"),
        ("", ""),
    ],
)  # fmt: skip
def test_the_licence_is_the_one_that_metadata_names(tmp_path: Path, fields: str, licence: str) -> None:
    assert licence_of(package(tmp_path, fields)) == licence


def test_the_document_of_a_wheel_has_its_files_and_what_it_requires(tmp_path: Path) -> None:
    needs = (
        "Requires-Dist: numpy>=1.26\nRequires-Dist: Some_Thing<2,>=1; extra == 'cpu'\nLicense-Expression: Apache-2.0"
    )
    document = of_wheel(package(tmp_path, needs), {"a/model.onnx": b"model", "lib/x.so": b"code"})
    check_valid(document)
    found = {each["name"]: each for each in document["components"]}
    assert set(found) == {"a/model.onnx", "lib/x.so", "numpy", "some-thing"}
    assert found["lib/x.so"]["hashes"] == [{"alg": "SHA-256", "content": hashlib.sha256(b"code").hexdigest()}]
    assert found["a/model.onnx"]["type"] == "machine-learning-model"
    assert (found["numpy"]["scope"], found["some-thing"]["scope"]) == ("required", "optional")
    assert found["some-thing"]["properties"] == [{"name": "deploykit:requirement:cpu", "value": "Some_Thing<2,>=1"}]
    assert document == of_wheel(package(tmp_path, needs), {"lib/x.so": b"code", "a/model.onnx": b"model"})
    assert document["serialNumber"] != of_wheel(package(tmp_path, needs), {})["serialNumber"]


names = st.from_regex(r"[A-Za-z][A-Za-z0-9]{0,6}([-_.][A-Za-z0-9]{1,4})?", fullmatch=True)


@settings(max_examples=50)
@given(st.lists(st.tuples(names, st.sampled_from(["", ">=1", "; extra == 'a'", "[x]>=2; extra == 'b'"])), max_size=6))
def test_whatever_a_wheel_requires_the_document_is_valid(needs: list[tuple[str, str]]) -> None:
    lines = "\n".join(f"Requires-Dist: {name}{rest}" for name, rest in needs)
    with tempfile.TemporaryDirectory() as folder:
        document = of_wheel(package(Path(folder), lines), {})
    check_valid(document)
    asked = [each["value"] for component in document["components"] for each in component["properties"]]
    assert sorted(asked) == sorted(f"{name}{rest.split(';')[0]}" for name, rest in needs)


def test_what_is_installed_is_listed_with_versions_licences_and_dependencies(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["doctor", "--sbom"]) == 0
    document = json.loads(capsys.readouterr().out)
    check_valid(document)
    found = {each["name"]: each for each in document["components"]}
    numpy = found["numpy"]
    assert numpy["version"] == metadata.version("numpy")
    record = metadata.distribution("numpy").read_text("RECORD")
    assert record is not None
    assert numpy["properties"] == [
        {"name": "deploykit:record:sha256", "value": hashlib.sha256(record.encode()).hexdigest()}
    ]
    needs = {each["ref"]: each["dependsOn"] for each in document["dependencies"]}
    assert numpy["bom-ref"] in needs[found["onnx"]["bom-ref"]]
    named = [each["licenses"][0] for each in found.values() if "licenses" in each]
    assert len(named) > 0.9 * sum(each["type"] == "library" for each in found.values())
    assert not [each for each in named if "license" in each and each["license"]["name"] in IDENTIFIERS]


def test_a_built_library_is_listed(tmp_path: Path) -> None:
    (tmp_path / "libdeploykit_cpu.so").write_bytes(b"built")
    document = of_environment([tmp_path / "libdeploykit_cpu.so"])
    check_valid(document)
    (found,) = [each for each in document["components"] if each["type"] == "file"]
    assert found["hashes"][0]["content"] == hashlib.sha256(b"built").hexdigest()


def check_wheel(wheel: Path) -> dict[str, Any]:
    """The document in a wheel, after a look at whether it is true."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (place,) = [name for name in names if "/sboms/" in name]
        document: dict[str, Any] = json.loads(archive.read(place))
        assert place.endswith(".dist-info/sboms/deploykit.cdx.json")
        listed = {each["name"]: each["hashes"][0]["content"] for each in document["components"] if "hashes" in each}
        for name, digest in listed.items():
            assert hashlib.sha256(archive.read(name)).hexdigest() == digest
        brought = {
            n for n in names if n.startswith(("deploykit/assets/", "deploykit/cpp_plugins/lib/")) and n[-1] != "/"
        }
        assert set(listed) == brought
    assert document["metadata"]["component"]["version"] == __version__
    check_valid(document)
    return document
