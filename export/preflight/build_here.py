"""One build of an engine in a process of its own, because a builder may end the process that it runs in.

``python -m deploykit.export.preflight.build_here FLAVOUR FILE`` prints one line of JSON: ``built`` (bytes of the
engine), ``refused`` (TensorRT's reason), or ``untried`` (why it could not be tried); and ``version``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deploykit.errors import DeployError, ExportError
from deploykit.export.engine.builder import Network, build, default_profile, parse
from deploykit.export.engine.progress import BuildProgress
from deploykit.progress import SILENT
from deploykit.runtime.backends.trt.bindings import BuildLog, load_flavour
from deploykit.runtime.engine_record import BuilderOptions, Profile
from deploykit.spec import METADATA_KEY, ModelSpec

__all__ = ["main"]

SIDE = 640  # of an image whose size is dynamic, where no spec says more


def main(words: Sequence[str]) -> int:
    """Build, and print what came of it."""
    flavour, file = words[0], Path(words[1])
    told: dict[str, Any] = {}
    try:
        trt = load_flavour(flavour)
        told["version"] = str(trt.__version__)
        network = parse(trt, file, BuildLog())
        profiles = _profiles(network, file)
        if profiles:
            told["shapes"] = str(profiles[0])
        plan, _ = build(network, BuilderOptions(), profiles, BuildProgress(SILENT))
        told["built"] = int(plan.nbytes)
    except ExportError as e:
        told["refused"] = str(e)
    except DeployError as e:
        told["untried"] = str(e)
    print(json.dumps(told))
    return 0


def _profiles(network: Network, file: Path) -> tuple[Profile, ...]:
    """The shapes of the one dynamic input: those of the spec in the file, or usual ones."""
    free = [info for info in network.inputs if None in info.shape]
    if len(free) != 1:
        return ()
    import onnx

    metadata = onnx.load(str(file), load_external_data=False).metadata_props
    text = next((entry.value for entry in metadata if entry.key == METADATA_KEY), None)
    if text is not None:
        return (default_profile(ModelSpec.from_json(text).input),)
    (info,) = free
    usual = (1, *(SIDE if axis >= len(info.shape) - 2 else 1 for axis in range(1, len(info.shape))))
    shape = tuple(usual[axis] if size is None else size for axis, size in enumerate(info.shape))
    return (Profile(shape, shape, shape),)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
