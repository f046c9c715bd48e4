"""The spec of a network: its own, or what the file of another project tells."""

from __future__ import annotations

import logging

from deploykit.errors import SpecError
from deploykit.runtime.foreign.draft import draft_spec
from deploykit.runtime.session import Session
from deploykit.spec import METADATA_KEY, ModelSpec

__all__ = ["known_spec", "session_spec"]

LOG = logging.getLogger(__name__)


def session_spec(session: Session, name: str) -> ModelSpec:
    """Return the spec in an artefact's metadata, or that of an export by others whose file tells enough.

    What is assumed of such a file is logged. ``name`` is the artefact's name in messages.

    Raises:
        SpecError: the metadata holds no valid spec, and the file does not tell enough.
    """
    text = session.metadata.get(METADATA_KEY)
    if text is not None:
        try:
            return ModelSpec.from_json(text)
        except SpecError as e:
            raise SpecError(f"the spec of {name}: {e}") from e
    draft = draft_spec(session, name)
    spec = draft.spec(name)
    LOG.warning("%s carries no deploykit spec; understood as: %s", name, spec.output.describe(spec))
    for note in (*draft.notes, *spec.assumption_notes):
        LOG.warning("%s", note)
    return spec


def known_spec(session: Session, name: str) -> ModelSpec | None:
    """Return what :func:`session_spec` does, or None where the file does not tell enough."""
    if METADATA_KEY in session.metadata:
        return session_spec(session, name)
    try:
        return session_spec(session, name)
    except SpecError:
        return None
