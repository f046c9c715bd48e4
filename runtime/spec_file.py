"""Read a spec from a JSON file, for models that do not carry their own."""

from __future__ import annotations

import os

from deploykit.errors import SpecError
from deploykit.runtime.files import existing_file
from deploykit.spec import ModelSpec
from deploykit.strict_json import JsonError, read_json

__all__ = ["read_spec"]


def read_spec(spec: ModelSpec | str | os.PathLike[str] | None) -> ModelSpec | None:
    """Return a spec as it is, or read it from the JSON file that ``spec`` names; None stays None.

    Raises:
        NotFoundError: the file does not exist.
        SpecError: the file cannot be read or does not hold a valid spec.
    """
    if spec is None or isinstance(spec, ModelSpec):
        return spec
    file = existing_file(spec, "a spec")
    try:
        return ModelSpec.from_dict(read_json(file))
    except OSError as e:
        raise SpecError(f"cannot read the spec {file}: {e.strerror or e}") from e
    except JsonError as e:
        raise SpecError(f"expected a spec as a JSON text file, but {file} is not one: {e}") from e
    except SpecError as e:
        raise SpecError(f"{file}: {e}") from e
