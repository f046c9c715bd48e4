"""What the models of a server are, and what they answer, as JSON."""

from __future__ import annotations

import asyncio
from typing import Any

from deploykit.describe import preprocessing
from deploykit.runtime.drawing.palette import palette
from deploykit.runtime.results.detection import Result
from deploykit.runtime.serve.core.asked import PARAMETERS
from deploykit.runtime.serve.core.calls import Call
from deploykit.runtime.serve.core.model import Answer, ServedModel

__all__ = ["colours", "document", "documented", "model_facts"]

COLOURS = 288  # after which those of the palette come again


def colours() -> list[str]:
    """Return the colours of the classes 0, 1, ... as CSS writes them; after the last one they begin anew."""
    return [f"#{red:02x}{green:02x}{blue:02x}" for blue, green, red in palette(COLOURS).tolist()]


def model_facts(model: ServedModel) -> dict[str, Any]:
    """Return what a client must know about a model to use it and to draw its results."""
    predictor, spec = model.predictor, model.predictor.spec
    keypoints, offers = spec.keypoints, predictor.adapter.offers()
    return {
        "name": model.source.name,
        "version": str(model.source.version),
        "task": spec.task,
        "classes": list(spec.classes),
        "keypoints": [] if keypoints is None else list(keypoints.names),
        "limbs": [] if keypoints is None else [list(pair) for pair in keypoints.skeleton],
        "flip_pairs": [] if keypoints is None else [list(pair) for pair in keypoints.flip_pairs],
        "keypoint_threshold": spec.thresholds.keypoint,
        "options": {name: _option(model, name, offers[name]) for name in PARAMETERS if name in offers},
        "input": preprocessing(spec),
        "input_size": list(spec.input.size),
        "precision": spec.precision,
        "max_batch": model.most,
        "providers": list(predictor.session.providers),
        "source": spec.source.model,
        "notes": [*spec.assumption_notes, *predictor.notes],
    }


def document(answer: Answer, model: ServedModel, call: Call) -> dict[str, Any]:
    """Return the JSON of an answer: that of ``predict --json``, and what the server knows besides."""
    return {
        **answer.result.to_dict(),
        "model": {"name": model.source.name, "version": str(model.source.version)},
        "timings": {stage: round(ms, 3) for stage, ms in answer.timings.items()},
        "request_id": call.id,
    }


async def documented(answer: Answer, model: ServedModel, call: Call) -> dict[str, Any]:
    """Return the same; masks, whose runs take long to find, hold no other request up."""
    if isinstance(answer.result, Result) and answer.result.masks is not None:
        return await asyncio.to_thread(document, answer, model, call)
    return document(answer, model, call)


def _option(model: ServedModel, name: str, limits: dict[str, Any]) -> dict[str, Any]:
    """Return the default, the schema and the meaning of an option; the default of None is the model's own choice."""
    _, schema, meaning = PARAMETERS[name]
    value = getattr(model.predictor.options, name)
    if value is None:
        value = getattr(getattr(model.predictor.adapter, "thresholds", model.predictor.spec.thresholds), name, None)
    if name == "classes" and value is not None:
        value = ",".join(map(str, value))
    return {"default": value, **schema, **limits, "description": meaning}
