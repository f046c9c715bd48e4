"""Family: a table of variants, and a network read off the shapes of a checkpoint's tensors, registered in one step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from deploykit.models.checkpoint.reader import Checkpoint
from deploykit.models.class_names import IMAGENET_MEAN, IMAGENET_STD
from deploykit.models.loading.shapes import CheckpointShapes
from deploykit.models.loading.weights import load_weights
from deploykit.models.registry import ReferenceModel, Rewrite, register_variants
from deploykit.spec import DenseOutput, Fit, InputSpec, ModelSpec

__all__ = ["Family", "classifier_spec", "imagenet_input"]


class _Dataclass(Protocol):
    """Any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


C = TypeVar("C", bound=_Dataclass)


class Family(ABC, Generic[C]):
    """A family of networks, each described by a frozen dataclass, its configuration.

    The module of a family states the facts in a subclass and registers one instance of it:

        FAMILY = MyFamily()
        FAMILY.register(__name__)
        from_checkpoint = FAMILY.from_checkpoint

    Attributes:
        name: of the family, for people.
        variants: the name of each registered variant, with underscores -> its configuration.
        signature: keys that every checkpoint of the family has, and none of another family.
        fixed_size_reason, choices: see :class:`deploykit.models.registry.ReferenceModel`.
    """

    name: str
    variants: Mapping[str, C]
    signature: frozenset[str]
    fixed_size_reason: str = ""
    choices: tuple[str, ...] = ()

    @abstractmethod
    def config_of(self, shapes: CheckpointShapes) -> C:
        """The configuration of the network whose tensors have these shapes.

        Raises:
            CheckpointError: there is no such network.
        """

    @abstractmethod
    def network(self, config: C) -> nn.Module:
        """A new network with torch's default weights."""

    @abstractmethod
    def spec(self, config: C, names: tuple[str, ...] | None) -> ModelSpec:
        """The spec of a network; ``names`` of the classes are those that a checkpoint brings, None: it brings none."""

    @abstractmethod
    def name_of(self, config: C) -> str:
        """The name of a variant, or one that says what differs from all of them; see :meth:`variant_of`."""

    @abstractmethod
    def assumed(self, config: C, shapes: CheckpointShapes) -> tuple[str, ...]:
        """What a network computes with and neither its tensors nor anything else in the file tells, a sentence each.

        Where the user must be able to choose, the sentence names the option. How images are prepared is said by
        :mod:`deploykit.models.loading.images`.
        """

    def variant_of(self, config: C, *free: str) -> str | None:
        """The name of the variant that equals ``config`` but for ``num_classes`` and the fields ``free``."""
        compared = [f.name for f in fields(config) if f.name not in ("num_classes", *free)]
        for name, known in self.variants.items():
            if type(known) is type(config) and all(getattr(config, f) == getattr(known, f) for f in compared):
                return name.replace("_", "-")
        return None

    def with_classes(self, config: C, num_classes: int) -> C:
        """The configuration with another number of classes."""
        return replace(config, num_classes=num_classes)

    def shapes_of(self, checkpoint: Checkpoint) -> CheckpointShapes | None:
        """The shapes of the tensors, under the network's own names; None: the checkpoint is of another family."""
        return CheckpointShapes(checkpoint, self.name) if self.signature <= checkpoint.state_dict.keys() else None

    def tensors_of(self, shapes: CheckpointShapes, network: nn.Module) -> dict[str, Tensor]:
        """The tensors of a checkpoint that the network is given, under the checkpoint's names."""
        return shapes.checkpoint.float32()

    def rewrites(self, config: C) -> Mapping[str, Rewrite]:
        """What the network can be rewritten to; see :class:`deploykit.models.registry.ReferenceModel`."""
        return {}

    def reference(self, config: C, network: nn.Module, names: tuple[str, ...] | None = None) -> ReferenceModel:
        """A network with everything that is known about it; ``names`` as for :meth:`spec`."""
        return ReferenceModel(
            self.name_of(config),
            self.name,
            network.eval(),
            self.spec(config, names),
            rewrites=self.rewrites(config),
            fixed_size_reason=self.fixed_size_reason,
            choices=self.choices,
        )

    def loaded(self, config: C, network: nn.Module, shapes: CheckpointShapes) -> ReferenceModel:
        """The model of a network that has its weights, with what was assumed."""
        model = self.reference(config, network, shapes.checkpoint.names)
        return model.assuming(*self.assumed(config, shapes))

    def from_checkpoint(self, checkpoint: Checkpoint) -> ReferenceModel | None:
        """The model of a checkpoint, built from the shapes of its tensors; None: it is of another family.

        Raises:
            CheckpointError: it is nearly of this family. WeightsMismatchError: a tensor does not fit.
        """
        shapes = self.shapes_of(checkpoint)
        if shapes is None:
            return None
        config = self.config_of(shapes)
        with torch.device("meta"):
            network = self.network(config)
        tensors = self.tensors_of(shapes, network)
        load_weights(network, checkpoint, tensors, self.name_of(config), key_map=shapes.key_map)
        return self.loaded(config, network, shapes)

    def build(self, variant: str, num_classes: int | None) -> ReferenceModel:
        """A registered variant with torch's default weights; ``num_classes`` None: as published."""
        config = self.variants[variant]
        if num_classes is not None:
            config = self.with_classes(config, num_classes)
        return replace(self.reference(config, self.network(config)), name=variant.replace("_", "-"))

    def register(self, module: str) -> None:
        """Register a builder for each variant; ``module``: ``__name__`` of the family's module."""
        register_variants(module, self.variants, self.build, self._about)

    def _about(self, variant: str) -> str:
        height, width = self.spec(self.variants[variant], None).input.size
        return f"{variant.replace('_', '-')} of {self.name}, {height}x{width}."


def imagenet_input(side: int, fit: Fit, channels: int = 3) -> InputSpec:
    """Square images with ImageNet's mean and deviation; 0.5 for other than three channels."""
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.5,) * channels,) * 2
    return InputSpec(size=(side, side), channels=channels, mean=mean, std=std, fit=fit)


def classifier_spec(canvas: InputSpec, classes: tuple[str, ...]) -> ModelSpec:
    """The spec of a network that gives logits ``(B, classes)``."""
    return ModelSpec("classify", canvas, DenseOutput(name="logits"), classes)
