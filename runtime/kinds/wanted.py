"""The classes that a prediction is asked for, by name or number."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from deploykit.errors import UsageError
from deploykit.numerals import typed_number
from deploykit.spec import ModelSpec

__all__ = ["labels_of"]

SHOWN = 10  # names in a message


def labels_of(wanted: Sequence[int | str], spec: ModelSpec) -> tuple[int, ...]:
    """Return the labels of classes: a text is a name, as it is or in another case, or else a number.

    All classes of a name are meant, if several share it.

    Raises:
        UsageError: the model has no such class, or none is asked for.
    """
    if isinstance(wanted, (str, int)) or not len(wanted):
        raise UsageError(f"classes must be a list of names or numbers, got {wanted!r}")
    found = [label for each in wanted for label in _labels(each, spec.classes, spec.output.num_classes(spec))]
    return tuple(dict.fromkeys(found))


def _labels(wanted: int | str, names: Sequence[str], count: int) -> list[int]:
    if isinstance(wanted, str):
        for same in (str, str.casefold):
            named = [label for label, name in enumerate(names) if same(name) == same(wanted)]
            if named:
                return named
    number = typed_number(wanted) if isinstance(wanted, str) else int(wanted)
    if number is not None and 0 <= number < count:
        return [number]
    close = get_close_matches(str(wanted).casefold(), [name.casefold() for name in names], 1)
    meant = f"; did you mean {next(name for name in names if name.casefold() == close[0])!r}?" if close else ""
    listed = f": {', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}" if names else " without names"
    raise UsageError(
        f"classes: this model has no class {wanted!r}{meant or ';'} it has {count}, 0 to {count - 1}{listed}"
    )
