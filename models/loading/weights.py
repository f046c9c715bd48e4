"""load_weights: a checkpoint's weights into a network, or an error that names the tensor that does not fit."""

from __future__ import annotations

from collections.abc import Mapping

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
    advice = f"the file is damaged or of a changed {name} (deploykit inspect shows it)"
    counters = {key for key in expected if key.endswith(".num_batches_tracked")}
    for key in counters:  # only training counts; some projects leave it out, or average it to a float
        found[key] = found.get(key, torch.zeros(())).long()
    for key, tensor in expected.items():
        if key not in found:
            raise WeightsMismatchError(f"{checkpoint.path} lacks the tensor {key} {list(tensor.shape)}: {advice}")
        if found[key].shape != tensor.shape:
            raise WeightsMismatchError(
                f"{checkpoint.path}: {key} is {list(found[key].shape)}, expected {list(tensor.shape)}: {advice}"
            )
        if found[key].dtype != tensor.dtype:
            raise WeightsMismatchError(
                f"{checkpoint.path}: {key} is of {found[key].dtype}, expected {tensor.dtype}: {advice}"
            )
    extra = next((key for key in found if key not in expected), None)
    if extra is not None:
        raise WeightsMismatchError(f"{checkpoint.path} holds the tensor {extra}, which {name} does not have: {advice}")
    module.load_state_dict({key: found[own[key]] for key in own}, assign=True)
