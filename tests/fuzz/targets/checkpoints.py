"""Checkpoints: pickles changed opcode by opcode, zip members with right checksums, headers of safetensors."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import struct
import zipfile
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from deploykit.errors import CheckpointError
from deploykit.models.checkpoint.reader import read_checkpoint
from deploykit.models.registry import model_from_checkpoint
from tests.fuzz.mutate import INTEGERS, changed_bytes, changed_json, json_text
from tests.fuzz.pickles import changed_pickle, pickle_from_nothing
from tests.fuzz.target import Files, Target
from tests.fuzz.watch import nothing_runs
from tests.models.checkpoint.hostile import (
    FLOATS,
    LEGACY_TENSOR,
    PROTO,
    STOP,
    ZipEntry,
    beside,
    described,
    mapping,
    module,
    safetensors,
    tensor,
    torch_legacy,
    torch_zip,
    zip_file,
)  # fmt: skip

STRANGE: tuple[Any, ...] = (
    0, 1, -1, 2**31, 2**63, 2**64, 10**400, None, True, "", "F32", "F4", "I64", "BF16", [], {}, [0, 0], [0, 16],
    [16, 0], [8, 24], [4], [-4], [2**40, 2**40], [0, 2**62], {"a": 1}, 0.5, "x" * 100, [1] * 70,
)  # fmt: skip


class Checkpoints(Target):
    """The reader of checkpoints, and the model that follows from one. Nothing in a file may be run."""

    name, memory = "checkpoints", 256 << 20

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.zips = [
            _saved(_trained()),
            _saved(_trained(), pickle_protocol=4),
            *map(_saved, _others()),
            torch_zip(PROTO + mapping(ema=module(), epoch=b"K\x01") + STOP),
            torch_zip(beside(tensor((2, 2), (2, 1)))),
        ]
        self.legacies = [
            _saved(_trained(), _use_new_zipfile_serialization=False),
            torch_legacy(PROTO + mapping(model=mapping(w=LEGACY_TENSOR)) + STOP),
        ]
        self.headers: list[dict[str, Any]] = [
            {"w": described([4], 0, 16)},
            {"__metadata__": {"format": "pt"}, "a": described([2], 0, 8), "b": described([1, 2], 8, 16)},
            {"model.0.weight": described([2, 2], 0, 8, "F16"), "model.0.bias": described([4], 8, 16, "BF16")},
        ]
        arrays = {"model": {"a": np.ones((2, 2), np.float32), "b": np.float64(1)}, "__author__": "x"}
        self.arrays = [pickle.dumps(arrays, protocol) for protocol in (2, 4)]
        self.pickles = [*map(_member, self.zips), *self.arrays]
        torch.set_num_threads(1)
        # What reading imports is imported before it is watched.
        for suffix, good in (
            (".pt", self.zips[0]),
            (".pth", self.legacies[0]),
            (".safetensors", safetensors(self.headers[1])),
        ):
            (folder / f"good{suffix}").write_bytes(good)
            read_checkpoint(folder / f"good{suffix}").float32()

    def make(self, random: Random) -> Files:
        kind = random.randrange(22)
        if kind == 20:
            return {"x.pkl": changed_pickle(random, random.choice(self.arrays), self.pickles)}
        if kind == 21:
            return self._shards(random)
        if kind < 10:
            return {"x.pt": self._zip(random)}
        if kind < 13:
            return {"x.pth": self._legacy(random)}
        if kind < 16:
            return {"x.safetensors": self._safetensors(random)}
        if kind < 18:
            return {"x.pkl": changed_pickle(random, random.choice(self.pickles), self.pickles)}
        whole = random.choice((*self.zips, *self.legacies, safetensors(random.choice(self.headers))))
        return {random.choice(("x.pt", "x.safetensors", "x.pkl")): changed_bytes(random, whole)}

    def _zip(self, random: Random) -> bytes:
        if random.random() < 0.25:
            return torch_zip(pickle_from_nothing(random), data=FLOATS)
        with zipfile.ZipFile(io.BytesIO(random.choice(self.zips))) as archive:
            entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
        found = []
        for name, data in entries:
            if name.endswith("data.pkl"):
                found.append(ZipEntry(name, changed_pickle(random, data, self.pickles)))
            else:
                found.append(ZipEntry(name, changed_bytes(random, data) if random.random() < 0.1 else data))
        if random.random() < 0.2:
            self._entry(random, found)
        return zip_file(*found, count=random.choice(INTEGERS) % 2**16 if random.random() < 0.02 else None)

    def _entry(self, random: Random, entries: list[ZipEntry]) -> None:
        """Let one entry lie, be left out, or be there twice."""
        place = random.randrange(len(entries))
        entry = entries[place]
        number = random.choice(INTEGERS) % 2**32
        lies: dict[str, Any] = random.choice(
            (
                {"claims": number}, {"offset": number}, {"flags": random.choice((1, 8, 0x800, 0xFFFF))},
                {"method": random.choice((8, 9, 99))}, {"crc": number}, {"inner_name": "archive/other"},
                {"name": random.choice(("../../x", "/etc/passwd", "archive/data/0", "archive/a\0b", "x/data.pkl"))},
            )
        )  # fmt: skip
        kind = random.randrange(4)
        if kind == 0:
            del entries[place]
        elif kind == 1:
            entries.insert(place, entry)
        else:
            entries[place] = ZipEntry(**{**vars(entry), **lies})

    def _legacy(self, random: Random) -> bytes:
        if random.random() < 0.5:
            value = PROTO + mapping(model=mapping(w=LEGACY_TENSOR), x=pickle_from_nothing(random)[2:-1]) + STOP
            stored = None if random.random() < 0.7 else struct.pack("<Q", random.choice(INTEGERS) % 2**64) + FLOATS
            return torch_legacy(changed_pickle(random, value) if random.random() < 0.5 else value, storages=stored)
        return changed_bytes(random, random.choice(self.legacies))

    def _safetensors(self, random: Random) -> bytes:
        header = changed_json(random, random.choice(self.headers), STRANGE)
        raw = json_text(random, header)
        return safetensors(raw, length=random.choice(INTEGERS) % 2**64 if random.random() < 0.05 else None)

    def _shards(self, random: Random) -> Files:
        """An index and two shards, of which one or the other is changed."""
        names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
        headers: list[Any] = [{each: described([4], 0, 16)} for each in "ab"]
        index: Any = {"metadata": {"total_size": 32}, "weight_map": dict(zip("ab", names, strict=True))}
        if random.random() < 0.5:
            index = changed_json(random, index, (*STRANGE, *names, "../x.safetensors", "/etc/passwd"))
        else:
            headers[0] = changed_json(random, headers[0], STRANGE)
        shards = {name: safetensors(json.dumps(header).encode()) for name, header in zip(names, headers, strict=True)}
        found = {"model.safetensors.index.json": json_text(random, index), **shards}
        if random.random() < 0.1:
            del found[random.choice(names)]
        return found if random.random() < 0.8 else {name: found[name] for name in names if name in found}

    def take(self, files: Files) -> None:
        for each in self.folder.glob("model*"):
            each.unlink()
        path = self.written(files)
        with nothing_runs(path, *(path.with_name(name) for name in files)):
            checkpoint = read_checkpoint(path)
            str(checkpoint.metadata), json.dumps(checkpoint.metadata), [str(each) for each in checkpoint.modules]
            checkpoint.float32()
        with contextlib.suppress(CheckpointError):  # most are of no model that is known
            model_from_checkpoint(checkpoint)


def _trained() -> dict[str, Any]:
    """What a training script saves: a module with its facts."""
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.BatchNorm2d(2), torch.nn.SiLU())
    with torch.no_grad():
        for number, parameter in enumerate(network.parameters()):
            parameter.fill_(number / 4)
    network.__dict__.update(names=["a", "b"], yaml={"nc": 2}, stride=[8, 16, 32])
    return {"epoch": 1, "model": network.half()}


def _others() -> list[dict[str, Any]]:
    """Weights as others save them: as parts, in wrappers, with averages, prefixes, names of classes."""
    normed = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.Linear(2, 2))
    torch.nn.utils.parametrizations.weight_norm(normed[0])
    torch.nn.utils.parametrizations.spectral_norm(normed[1])
    plain = {"conv.weight": torch.ones(2, 1, 1, 1), "conv.bias": torch.zeros(2)}
    average = {"n_averaged": torch.tensor(1), **{f"module.{name}": value for name, value in plain.items()}}
    compiled = {f"module._orig_mod.{name}": value for name, value in plain.items()}
    lightning = {f"model.net.{name}": value for name, value in plain.items()} | {"criterion.weight": torch.ones(3)}
    names = {"CLASSES": ("a", "b"), "id2label": {0: "a", "1": "b"}}
    return [
        normed.state_dict(),
        {"state_dict": compiled, "ema_state_dict": average, "meta": names, "optimizer": {"state": {}}},
        {"state_dict": lightning, "hyper_parameters": {"names": {0: "a", 1: "b"}}, "amp": {"loss_scaler0": {}}},
    ]


def _saved(content: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def _member(archive: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        return opened.read(next(name for name in opened.namelist() if name.endswith("data.pkl")))


TARGET = Checkpoints
