"""What lies beside an export: engine records, engines, reference values and parity reports."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from pathlib import Path
from random import Random

import numpy as np
import pytest

from deploykit.export.inspection import inspect_file
from deploykit.facade import load
from deploykit.runtime.backends.trt import session as trt
from deploykit.runtime.engine_record import (
    BuilderOptions,
    EngineRecord,
    Profile,
    find_onnx_source,
    read_record,
    reference_values_path,
)  # fmt: skip
from deploykit.runtime.parity.expected import ReferenceOutputs
from deploykit.runtime.verified import check_verified, onnx_doubt, sha256
from tests import cpu_tensorrt
from tests.cell_model import cell_spec, write_cell_model
from tests.cpu_tensorrt import CpuGpu, write_engine
from tests.fuzz.mutate import changed_bytes, changed_json, json_text
from tests.fuzz.target import Files, Target
from tests.runtime.parity.test_expected import expected

IMAGE = np.zeros((64, 64, 3), np.uint8)


class Records(Target):
    """An engine with everything that is read with it. A stand-in of TensorRT runs those that are as they were."""

    name, memory = "records", 256 << 20

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(trt, "open_gpu", lambda index=0: CpuGpu())
        self.patch.setitem(sys.modules, "tensorrt", cpu_tensorrt)
        self.patch.setattr(trt, "installed", lambda: ("tensorrt",))
        self.patch.setattr(cpu_tensorrt.Runtime, "says", "")
        onnx = write_cell_model(folder / "x.onnx", spec=cell_spec())
        engine = write_engine(folder / "x.trt", onnx)
        shape = (1, 3, 64, 64)
        record = EngineRecord(
            "tensorrt", "10.16.0.1", cell_spec(), "x.onnx", sha256(onnx), size=engine.stat().st_size,
            sha256=sha256(engine), profiles=(Profile(shape, shape, (4, 3, 64, 64)),), precision={"fp32": 3},
            options=BuilderOptions(compute_capabilities=("sm89",)), verified=True,
        )  # fmt: skip
        self.record = json.loads(record.to_json())
        self.report = {"ok": True, "sha256": sha256(onnx), "parts": {"x.onnx.data": sha256(engine)}}
        expected().save(reference_values_path(engine))
        self.values = reference_values_path(engine).read_bytes()
        self.engine, self.onnx = engine.read_bytes(), onnx.read_bytes()
        with zipfile.ZipFile(io.BytesIO(self.values)) as archive:
            self.arrays = {name: archive.read(name) for name in archive.namelist()}

    def make(self, random: Random) -> Files:
        files = {"x.trt": self.engine, "x.trt.json": json.dumps(self.record).encode(), "x.trt.parity.npz": self.values}
        files |= {"x.onnx": self.onnx, "x.onnx.parity.json": json.dumps(self.report).encode()}
        kind = random.randrange(10)
        if kind < 5:
            files["x.trt.json"] = json_text(random, changed_json(random, self.record))
        elif kind < 6:
            files["x.onnx.parity.json"] = json_text(random, changed_json(random, self.report))
        elif kind < 7:
            files["x.trt"] = changed_bytes(random, self.engine)
        elif kind < 8:
            files["x.trt.parity.npz"] = changed_bytes(random, self.values)
        else:
            files["x.trt.parity.npz"] = self._values(random)
        return files

    def _values(self, random: Random) -> bytes:
        """Reference values whose JSON or one of whose arrays is changed, in an archive with right checksums."""
        arrays = dict(self.arrays)
        name = random.choice(sorted(arrays))
        if name == "about.npy":
            header, about = arrays[name][:128], arrays[name][128:]
            changed = json_text(random, changed_json(random, json.loads(about)))
            header = header.replace(f"({len(about)},)".encode(), f"({len(changed)},)".encode())
            arrays[name] = header + changed
        else:
            arrays[name] = changed_bytes(random, arrays[name])
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", random.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
            for each, content in arrays.items():
                archive.writestr(each, content)
        return stream.getvalue()

    def take(self, files: Files) -> None:
        engine = self.written(files)
        onnx = engine.with_suffix(".onnx")
        find_onnx_source(engine)
        onnx_doubt(onnx)
        record = read_record(engine)
        if record is not None:
            json.dumps(record.to_dict(), allow_nan=False)
        json.dumps(inspect_file(engine).to_dict(), allow_nan=False)
        ReferenceOutputs.load(reference_values_path(engine))
        check_verified(onnx)
        check_verified(engine)
        if files["x.trt"] == self.engine:  # the stand-in reads no others
            with load(engine) as predictor:
                predictor(IMAGE)

    def close(self) -> None:
        self.patch.undo()


TARGET = Records
