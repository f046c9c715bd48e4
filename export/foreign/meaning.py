"""What a network of another project is for: its spec, or at least how its images are prepared."""

from __future__ import annotations

import copy
import dataclasses
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deploykit.describe import preprocessing
from deploykit.errors import SpecError, UsageError
from deploykit.export.options import ImagePreparation
from deploykit.runtime.foreign.draft import SpecDraft, draft_spec
from deploykit.runtime.session import Session
from deploykit.spec import METADATA_KEY, DenseOutput, ModelSpec

__all__ = ["Meaning", "meaning_of"]

LISTS = ("mean", "std")
CROP_SHARE = 0.875
"""Of the shorter side, what most classifiers are evaluated with."""


@dataclass(frozen=True)
class Meaning:
    """What is known of a network.

    Attributes:
        spec: its spec; without one that of plain features, whose input alone means something.
        known: whether the spec is known. Else outputs are compared as plain values.
        notes: what was assumed, a sentence each.
    """

    spec: ModelSpec
    known: bool
    notes: tuple[str, ...] = ()


def meaning_of(
    session: Session, file: Path, given: ModelSpec | None, prepared: ImagePreparation, *, bytes_in: bool, chooses: bool
) -> Meaning:
    """Return what a given spec, a file's own, or a draft from what it tells says of a network.

    Args:
        session: the network, fed by float images with the channels first.
        file: the network's file.
        given: a spec that is given for it; None: its own, or what the file tells.
        prepared: how images are prepared, where no spec says it.
        bytes_in: the network takes bytes, which are pixels of 0 to 255.
        chooses: the graph ends in a choice, so its outputs are no scores of classes.

    Raises:
        UsageError: it says how images are prepared already, or what no tensor tells is missing. SpecError: its spec
            cannot be used.
    """
    own = session.metadata.get(METADATA_KEY)
    asked = [f"--{field.name}" for field in dataclasses.fields(prepared) if getattr(prepared, field.name) is not None]
    if given is not None or own is not None:
        if asked:
            whose = "the given spec" if given is not None else f"the spec of {file}"
            raise UsageError(f"{', '.join(asked)}: {whose} says how images are prepared")
        return Meaning(given or ModelSpec.from_json(str(own)), known=True)
    drafted = draft_spec(session, str(file))
    if chooses and drafted.data.get("task") == "classify":
        drafted = _without_task(drafted)
    draft = _completed(drafted, replace(prepared, scale=1.0) if bytes_in and prepared.scale is None else prepared)
    if needed := [name for name in draft.unknown if name.startswith("input.")]:
        told = "; ".join(f"--{name.rpartition('.')[2].replace('_share', '')}: {draft.unknown[name]}" for name in needed)
        raise UsageError(
            f"no tensor of {file} tells how its images are prepared, and ranges that are measured on wrong ones "
            f"destroy a network: give a spec (--spec), or what is missing ({told})"
        )
    if not draft.unknown:
        spec = draft.spec(str(file))
        said = f"{file} carries no deploykit spec; understood as: {spec.output.describe(spec)}"
        return Meaning(spec, known=True, notes=(said, *draft.notes, *spec.assumption_notes))
    spec = _features(draft, session)
    why = " and ".join(draft.unknown)
    notes = [
        f"the file does not tell {why}, so its outputs are compared as plain values (--spec says what they mean)",
        f"assumed: {preprocessing(spec)}"
        + ("" if asked else " (no tensor tells it; --colour, --scale, --mean, --std)"),
    ]
    return Meaning(spec, known=False, notes=(*draft.notes, *notes))


def _without_task(draft: SpecDraft) -> SpecDraft:
    """A draft of which only the input is taken, as that of a network that is for anything."""
    canvas = {key: value for key, value in draft.data["input"].items() if key not in (*LISTS, "fit")}
    plain = {name: [value] * canvas.get("channels", 3) for name, value in zip(LISTS, (0.0, 1.0), strict=True)}
    return SpecDraft({"input": {**canvas, **plain}}, {"task": "", "output": ""}, draft.notes)


def _completed(draft: SpecDraft, prepared: ImagePreparation) -> SpecDraft:
    """A draft with what is known of the preparation of images."""
    data: dict[str, Any] = copy.deepcopy(draft.data)
    canvas, unknown, notes = data["input"], dict(draft.unknown), draft.notes
    channels = canvas.get("channels", 3)
    for name in ("colour", "scale"):
        if (value := getattr(prepared, name)) is not None:
            canvas[name] = value
            unknown.pop(f"input.{name}", None)
    for name in LISTS:
        if (values := getattr(prepared, name)) is not None:
            canvas[name] = list(values) * (channels if len(values) == 1 else 1)
            unknown.pop(f"input.{name}", None)
    if prepared.fit is not None:
        canvas["fit"] = {**canvas.get("fit", {}), "kind": prepared.fit}
        if prepared.fit != "crop":
            unknown.pop("input.fit.crop_share", None)
    elif prepared.mean is not None and "input.fit.crop_share" in unknown:
        canvas["fit"]["crop_share"] = CROP_SHARE
        del unknown["input.fit.crop_share"]
        notes = (*notes, f"assumed: {CROP_SHARE:g} of the shorter side of an image is seen (--fit resize: all of it)")
    if prepared.img is not None:
        canvas["size"] = [prepared.img, prepared.img] if isinstance(prepared.img, int) else list(prepared.img)
    return SpecDraft(data, unknown, notes)


def _features(draft: SpecDraft, session: Session) -> ModelSpec:
    """A spec of which only the input is known."""
    try:
        read = ModelSpec.from_json(
            json.dumps({"task": "features", "input": draft.data["input"], "output": {"kind": "tensor"}})
        )
    except SpecError as e:
        raise SpecError(f"the input of this network: {e}") from e
    return replace(read, output=DenseOutput(name=session.outputs[0].name))
