"""How many replicas a server has on Ray Serve, and what each has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from deploykit.errors import UsageError

__all__ = ["APPLICATION", "Scaling", "autoscaling"]

APPLICATION = "deploykit"
"""The name of the application and of its deployment in Ray Serve."""


@dataclass(frozen=True)
class Scaling:
    """How many replicas there are, and what each has.

    Attributes:
        min_replicas, max_replicas: the least and the most replicas.
        ongoing: requests on their way in each replica that Ray aims at: more add replicas, fewer take them away.
        cpus, gpus: cores and GPUs of each; a fraction of a GPU shares one.

    Raises:
        UsageError: a number is out of range.
    """

    min_replicas: int = 1
    max_replicas: int = 1
    ongoing: float = 8.0
    cpus: int = 1
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.min_replicas <= self.max_replicas:
            raise UsageError(
                f"replicas must be at least 1, and at most no fewer: got {self.min_replicas} to {self.max_replicas}"
            )
        if self.ongoing <= 0 or self.cpus < 1 or self.gpus < 0:
            raise UsageError(
                "a replica needs at least 1 core, no less than no GPU, and more than 0 requests on their way, got "
                f"{self.cpus}, {self.gpus:g} and {self.ongoing:g}"
            )


def autoscaling(scaling: Scaling) -> dict[str, Any]:
    """Return the autoscaling settings of a deployment, as Ray Serve names them."""
    return {
        "min_replicas": scaling.min_replicas,
        "max_replicas": scaling.max_replicas,
        "target_ongoing_requests": scaling.ongoing,
    }
