"""Files that hold something else than the weights of a network, and what to do about each: a table of signs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from deploykit.errors import CheckpointError

__all__ = ["refuse_names", "refuse_root", "why_not_read"]

_MERGE = "merge it into its network (peft: merge_and_unload()) and save that network's state_dict()"
_FLOAT = "give the file of before the quantization, and deploykit export --precision int8 quantizes it"
_ZERO = "run zero_to_fp32.py, which DeepSpeed writes beside it, and give the file that it makes"
_GATHER = "gather the weights before saving (a full state dict), or join the files with torch.distributed.checkpoint"

_NAMES: tuple[tuple[str, str, str], ...] = (
    (
        r".*\b(?:lora_(?:A|B|up|down|magnitude_vector|embedding_[AB]))\b.*",
        "a LoRA adapter, not a network's weights",
        _MERGE,
    ),
    (
        r".*\b(?:hada_w[12]_[ab]|lokr_w[12](?:_[ab])?|ia3_l|oft_r|vera_lambda_[bd])\b.*",
        "an adapter, not a network's weights",
        _MERGE,
    ),
    (r".*\.(?:qweight|qzeros)", "quantized weights (GPTQ or AWQ)", _FLOAT),
    (r".*\.(?:absmax|nested_absmax|quant_map|quant_state\.\w+|SCB)", "quantized weights (bitsandbytes)", _FLOAT),
    (r".*\._packed_params(?:\..*)?", "quantized weights (torch.ao.quantization)", _FLOAT),
    (
        r".*\.(?:weight_fake_quant|activation_post_process|fake_quant_enabled|_weight_quantizer|_input_quantizer)(?:\..*)?",
        "the fake quantizers of quantization-aware training, which change what the network computes",
        "give the file of before, or take them off in the project that trained it",
    ),
)
"""Pattern of a tensor's name -> what the file holds, and what to do."""

_KINDS: tuple[tuple[str, str, str], ...] = (
    (r"torch\._utils\._rebuild_qtensor|torch\.Q\w+Storage", "a quantized tensor", _FLOAT),
    (r"torchao\..*", "a quantized tensor of torchao", _FLOAT),
    (r"bitsandbytes\..*", "a quantized tensor of bitsandbytes", _FLOAT),
    (r"torch\._utils\._rebuild_sparse\w*", "a sparse tensor", "save it dense (to_dense())"),
    (r"torch\.distributed\..*(?:ShardedTensor|DTensor).*", "a shard of a distributed tensor (FSDP)", _GATHER),
    (r"torch\.jit\..*|torch\._C\.\w*Script\w*", "a TorchScript object", "save the state_dict() of its module"),
    (r"torch\._utils\._rebuild_meta_tensor\w*", "a tensor without values (meta)", "load the weights before saving"),
    (r"torch\._utils\._rebuild_nested_tensor\w*", "a nested tensor", "save its parts one by one"),
)  # fmt: skip
"""Pattern of a class or function in a pickle -> what it makes, and what to do."""


def refuse_names(names: Iterable[str]) -> None:
    """Refuse tensors that are no weights as a network computes with them, by their names.

    Raises:
        CheckpointError: they are those of an adapter, or quantized.
    """
    keys = set(names)
    for pattern, what, advice in _NAMES:
        found = [key for key in keys if re.fullmatch(pattern, key)]
        if found:
            raise _refusal(min(found), len(found), what, advice)
    scaled = [key for key in keys if key.endswith(".zero_point") and f"{key.removesuffix('zero_point')}scale" in keys]
    if scaled:
        raise _refusal(min(scaled), len(scaled), "quantized weights (a scale and a zero_point)", _FLOAT)


def _refusal(name: str, count: int, what: str, advice: str) -> CheckpointError:
    tensors = f"{count:,} tensors such as {name[:80]}" if count > 1 else f"the tensor {name[:80]}"
    return CheckpointError(f"it holds {what} ({tensors}): {advice}")


def why_not_read(kind: str) -> str:
    """Why a weight of some kind is not read, and what to do."""
    for pattern, what, advice in _KINDS:
        if re.fullmatch(pattern, kind):
            return f"{what} ({kind[:80]}), which is not read; {advice}"
    return f"a {kind[:80]}, which is not read; leave it out"


def refuse_root(root: Any) -> None:
    """Refuse a file whose top-level object is known to hold no whole weights.

    Sources: the names that ``torch.optim.Optimizer.state_dict`` and DeepSpeed's ``save_checkpoint`` write.

    Raises:
        CheckpointError: it is the state of an optimizer alone, or a part of DeepSpeed's files.
    """
    if not isinstance(root, Mapping):
        return
    if "ds_version" in root or "ds_config" in root:
        parts = root.get("param_shapes")
        module = root.get("module")
        empty = isinstance(module, Mapping) and all(getattr(value, "numel", 0) == 0 for value in module.values())
        if not isinstance(module, Mapping) or (parts and empty):
            raise CheckpointError(f"it is a part of DeepSpeed's files (ZeRO), without whole weights: {_ZERO}")
    if {"state", "param_groups"} <= root.keys():
        raise CheckpointError("it is the state of an optimizer and holds no weights: give the file of the model")
    others = [key for key in root if isinstance(key, str) and "optim" not in key and "sched" not in key]
    if len(others) < len(root) and not any(isinstance(root[key], (Mapping, list)) for key in others):
        found = ", ".join(str(key)[:40] for key in list(root)[:5])
        raise CheckpointError(
            f"it holds the state of an optimizer and no weights ({found}): give the file of the model"
        )
