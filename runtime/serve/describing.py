"""What the models of a server are, for people, for pages and for programs."""

from __future__ import annotations

from typing import Any

from deploykit.describe import preprocessing
from deploykit.runtime.serve.asked import PARAMETERS
from deploykit.runtime.serve.core.model import ServedModel

__all__ = ["model_facts"]


def model_facts(model: ServedModel) -> dict[str, Any]:
    """Return what a client must know about a model to use it and to draw its results."""
    predictor, spec = model.predictor, model.predictor.spec
    keypoints = spec.keypoints
    return {
        "name": model.source.name,
        "version": str(model.source.version),
        "task": spec.task,
        "classes": list(spec.classes),
        "keypoints": [] if keypoints is None else list(keypoints.names),
        "limbs": [] if keypoints is None else [list(pair) for pair in keypoints.skeleton],
        "keypoint_threshold": spec.thresholds.keypoint,
        "options": {name: _option(model, name) for name in PARAMETERS if name in model.takes},
        "input": preprocessing(spec),
        "input_size": list(spec.input.size),
        "precision": spec.precision,
        "max_batch": model.most,
        "providers": list(predictor.session.providers),
        "source": spec.source.model,
        "notes": [*spec.assumption_notes, *predictor.notes],
    }


def _option(model: ServedModel, name: str) -> dict[str, Any]:
    """Return the default, the schema and the meaning of an option; the default of None is the model's own choice."""
    _, schema, meaning = PARAMETERS[name]
    value = getattr(model.predictor.options, name)
    if value is None:
        value = getattr(getattr(model.predictor.adapter, "thresholds", model.predictor.spec.thresholds), name, None)
    if name == "classes" and value is not None:
        value = ",".join(map(str, value))
    return {"default": value, **schema, "description": meaning}
