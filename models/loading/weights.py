"""load_weights: a checkpoint's weights into a network, or an error that names the tensor that does not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from deploykit.errors import WeightsMismatchError
from deploykit.models.checkpoint.reader import Checkpoint

__all__ = ["load_weights"]


def load_weights(
    module: nn.Module,
    checkpoint: Checkpoint,
    found: dict[str, Tensor],
    name: str,
    *,
    key_map: Mapping[str, str] | None = None,
) -> None:
    """Give ``module``, which may be on the meta device, the tensors ``found`` of a checkpoint; they are not copied.

    Args:
        module: the network.
        checkpoint: where they are from, for messages.
        found: :meth:`Checkpoint.float32`, changed where the family keeps something otherwise.
        name: of the model, for messages.
        key_map: the module's names of tensors -> the file's, where they differ; each name once.

    Raises:
        WeightsMismatchError: a tensor is missing, is left over or has another shape or type.
    """
    own = {key: (key_map or {}).get(key, key) for key in module.state_dict()}
    expected = {own[key]: tensor for key, tensor in module.state_dict().items()}
    counters = {key for key in expected if key.endswith(".num_batches_tracked")}
    for key in counters:  # only training counts; some projects leave it out, or average it to a float
        found[key] = found.get(key, torch.zeros(())).long()
    reason = _misfit(expected, found, name)
    if reason:
        advice = f"it is of a changed {name}, or of another network (deploykit inspect shows it)"
        if _is_fused(module, own, found):
            advice = "its batch norms are fused into its convolutions: take a file of before they were fused"
        raise WeightsMismatchError(f"{checkpoint.path}{reason}: {advice}")
    module.load_state_dict({key: found[own[key]] for key in own}, assign=True)


def _misfit(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], name: str) -> str:
    """What the first tensor is that does not fit, and how many are like it; empty: all fit."""
    missing = [key for key in expected if key not in found]
    extra = [key for key in found if key not in expected]
    if missing:
        also = f" and holds {extra[0]}{_more(extra)} instead" if extra else ""
        return f" lacks the tensor {missing[0]} {list(expected[missing[0]].shape)}{_more(missing)}{also}"
    for key, tensor in expected.items():
        if found[key].shape != tensor.shape:
            return f": {key} is {list(found[key].shape)}, expected {list(tensor.shape)}"
        if found[key].dtype != tensor.dtype:
            return f": {key} is of {found[key].dtype}, expected {tensor.dtype}"
    return f" holds the tensor {extra[0]}, which {name} does not have{_more(extra)}" if extra else ""


def _more(keys: Sequence[str]) -> str:
    """How many there are besides the first."""
    return f" (and {len(keys) - 1:,} more)" if len(keys) > 1 else ""


def _is_fused(module: nn.Module, own: Mapping[str, str], found: Mapping[str, Tensor]) -> bool:
    """Whether all that is missing is of batch norms, and all that is left over are biases of convolutions."""
    norms = tuple(f"{path}." for path, m in module.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    missing = [key for key in own if own[key] not in found]
    extra = found.keys() - set(own.values())
    return (
        bool(missing and extra)
        and all(key.startswith(norms) for key in missing)
        and all(key.endswith(".bias") for key in extra)
    )
