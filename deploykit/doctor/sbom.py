"""A software bill of materials in CycloneDX 1.6 (JSON): what a wheel of ours holds and asks for, or what is installed.

The standard library alone, and nothing of deploykit: setup.py loads this file to write the one inside the wheel.
"""

from __future__ import annotations

import hashlib
import platform
import re
import uuid
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["licence_of", "of_environment", "of_wheel"]

Json = dict[str, Any]

SPDX = {
    "apache 2.0": "Apache-2.0", "apache license 2.0": "Apache-2.0", "apache software license": "Apache-2.0",
    "bsd 2-clause license": "BSD-2-Clause", "bsd 3-clause license": "BSD-3-Clause",
    "3-clause bsd license": "BSD-3-Clause", "freebsd": "BSD-2-Clause", "isc license": "ISC",
    "isc license (iscl)": "ISC", "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0", "python software foundation license": "PSF-2.0",
}  # fmt: skip
"""Names that packages give their licences (lower case) -> the identifiers of SPDX."""

IDENTIFIERS = {
    "0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "HPND", "ISC", "MIT", "MIT-CMU",
    "MPL-2.0", "PSF-2.0", "Unlicense", "Zlib",
}  # fmt: skip
UNTOLD = {"", "unknown"}


def licence_of(package: metadata.Distribution) -> str:
    """Return the licence that a package's metadata names: an SPDX expression where that can be told, else its words.

    The newer field holds an expression; the older one a name or a whole text; else there are classifiers. Empty: none
    of them says anything.
    """
    about = package.metadata
    if "License-Expression" in about:
        return str(about["License-Expression"])
    told = str(about["License"] or "").strip() if "License" in about else ""
    first = told.splitlines()[0].strip(" =") if told else ""
    named = [] if first.lower() in UNTOLD or len(first) > 40 else [first]
    classified = [
        str(each).rpartition("::")[2].strip() for each in about.get_all("Classifier") or [] if "License ::" in each
    ]
    names = [_identifier(name) for name in named] or [_identifier(name) for name in classified]
    if len(names) == 1 and names[0] not in IDENTIFIERS:  # a classifier may know more
        names = [name for name in map(_identifier, classified) if name in IDENTIFIERS] or names
    return " OR ".join(dict.fromkeys(names))


def _identifier(name: str) -> str:
    return SPDX.get(name.lower(), name)


def of_wheel(package: metadata.Distribution, contents: Mapping[str, bytes]) -> Json:
    """Return the document of a wheel: files that it brings besides its source code, and what it requires.

    Args:
        package: its metadata.
        contents: path in the wheel -> bytes, of the files that are named.
    """
    ours = _component(package)
    files = [_file(name, data, f"{ours['bom-ref']}#{name}") for name, data in sorted(contents.items())]
    required: dict[str, Json] = {}
    for requirement in sorted(package.requires or []):
        name, extra = _name_of(requirement), re.search(r"extra\s*==\s*['\"]([\w.-]+)['\"]", requirement)
        found = required.setdefault(
            name,
            {"type": "library", "bom-ref": f"pkg:pypi/{name}", "name": name, "purl": f"pkg:pypi/{name}",
             "scope": "optional", "properties": []},
        )  # fmt: skip
        if extra is None:
            found["scope"] = "required"
        found["properties"].append(
            {
                "name": f"deploykit:requirement{f':{extra[1]}' if extra else ''}",
                "value": requirement.split(";")[0].strip(),
            }
        )
    needs = [{"ref": ours["bom-ref"], "dependsOn": [each["bom-ref"] for each in required.values()]}]
    return _document(ours, [*files, *required.values()], needs)


def of_environment(libraries: Iterable[Path] = ()) -> Json:
    """Return the document of the packages that are installed beside deploykit, with what each needs of the others.

    ``libraries``: native libraries that were built on this machine.
    """
    packages: dict[str, metadata.Distribution] = {}
    for package in metadata.distributions():
        if name := package.metadata["Name"]:
            packages.setdefault(_normal(name), package)
    components = {name: _component(package) for name, package in sorted(packages.items())}
    needs = [
        {
            "ref": components[name]["bom-ref"],
            "dependsOn": sorted(
                {components[need]["bom-ref"] for need in map(_name_of, package.requires or []) if need in components}
            ),
        }
        for name, package in sorted(packages.items())
    ]
    python = {
        "type": "platform", "bom-ref": "python", "name": platform.python_implementation(),
        "version": platform.python_version(),
    }  # fmt: skip
    ours = components.pop("deploykit-vision", None) or {
        "type": "application",
        "bom-ref": "deploykit",
        "name": "deploykit",
    }
    files = [_file(str(path), path.read_bytes(), f"file:{path.name}") for path in libraries]
    return _document(ours, [python, *components.values(), *files], needs)


def _component(package: metadata.Distribution) -> Json:
    """A package: its name, version and licence, and the SHA-256 of the list of its files, which has those of each."""
    name, version = _normal(package.metadata["Name"]), package.version
    place = f"pkg:pypi/{name}@{version.replace('+', '%2B')}"
    found: Json = {"type": "library", "bom-ref": place, "name": name, "version": version, "purl": place}
    if licence := licence_of(package):
        known = all(part in IDENTIFIERS for part in re.split(r" AND | OR |[()]| WITH LLVM-exception", licence) if part)
        found["licenses"] = [{"expression": licence} if known else {"license": {"name": licence}}]
    if listed := package.read_text("RECORD"):
        digest = hashlib.sha256(listed.encode()).hexdigest()
        found["properties"] = [{"name": "deploykit:record:sha256", "value": digest}]
    return found


def _file(name: str, data: bytes, reference: str) -> Json:
    return {
        "type": "machine-learning-model" if name.endswith((".onnx", ".pt")) else "file", "bom-ref": reference,
        "name": name, "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(data).hexdigest()}],
    }  # fmt: skip


def _document(ours: Json, components: list[Json], needs: list[Json]) -> Json:
    """The whole, without a time, so that the same contents give the same bytes."""
    known = repr((ours, components, needs)).encode()
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, hashlib.sha256(known).hexdigest())}",
        "version": 1,
        "metadata": {"component": {**ours, "type": "application"}},
        "components": components,
        "dependencies": needs,
    }


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _name_of(requirement: str) -> str:
    found = re.match(r"\s*([\w.-]+)", requirement)
    return _normal(found[1]) if found else ""
