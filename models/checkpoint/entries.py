"""The entries of a checkpoint that hold weights, and the one of them that is taken.

One rule for all projects (docs/checkpoints.md): an average of the weights before the raw ones, because projects
evaluate and publish the average; what is ambiguous is refused and never guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from deploykit.errors import CheckpointError, UnsafeCheckpointError, UsageError
from deploykit.models.checkpoint.module_tree import Budget, is_module, is_tensor, tensors_of
from deploykit.models.checkpoint.refusals import refuse_root
from deploykit.models.checkpoint.stack_machine import Record, unsafe, what_is
from deploykit.models.checkpoint.tensors import StoredTensor

__all__ = ["COUNTERS", "Chosen", "Entry", "choose_entry", "is_averaged_model", "tensor_names"]

AVERAGES = frozenset({
    "average_model", "averaged_model", "ema", "ema_model", "ema_model_state_dict", "ema_net", "ema_network",
    "ema_params", "ema_state_dict", "g_ema", "generator_ema", "model_avg", "model_ema", "model_ema_state_dict",
    "model_swa", "net_ema", "network_ema", "params_ema", "state_dict_ema", "state_dict_swa", "swa", "swa_model",
    "swa_state_dict", "teacher",
})  # fmt: skip
"""Names of entries with an average of the weights over the steps of training."""

CUSTOMARY = ("model", "state_dict", "params")
"""Names of entries with a network's weights that need no note."""

NETWORKS = frozenset({
    *CUSTOMARY, "generator", "model_dict", "model_state", "model_state_dict", "model_weights", "module", "net", "net_g",
    "net_state_dict", "network", "network_state_dict", "student", "weights",
})  # fmt: skip
"""Names of entries with the weights of the network that was trained."""

BESIDE = frozenset(
    {"amp", "args", "callbacks", "config", "grad_scaler", "hparams", "hyper_parameters", "loops", "scaler"}
)
"""Names of entries that training keeps for itself, besides optimizers and schedulers; they are not searched."""

COUNTERS = frozenset({"decay", "n_averaged", "num_updates", "steps", "updates"})
"""Tensors of an average that are no weights: how many models were averaged, and how fast."""

MAX_DEPTH = 3
MAX_ITEMS = 200_000  # of the dictionaries that are searched; only dictionaries that share others have more
MAX_ENTRIES = 32
MAX_COMPARED = 8  # entries of one kind that are compared with each other
SHOWN = 8


@dataclass(frozen=True)
class Entry:
    """An entry that holds weights.

    Attributes:
        name: dotted; empty: the top level.
        tensors: how many it has.
        average: it is an average of the weights over the steps of training, by its name.
        taken: its weights are the checkpoint's.
    """

    name: str
    tensors: int
    average: bool
    taken: bool = False

    def __str__(self) -> str:
        count = f"{self.tensors:,} tensor{'s' * (self.tensors != 1)}"
        return f"{self.name or 'the top level'} ({count}{', taken' * self.taken})"


@dataclass(frozen=True)
class Chosen:
    """The entry that is taken, the record or dictionary with its weights, all entries, and what to say about it."""

    name: str
    holder: Any
    entries: tuple[Entry, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Candidate:
    name: str
    holder: Any
    tensors: Mapping[str, StoredTensor] = field(repr=False)

    @property
    def last(self) -> str:
        return self.name.rpartition(".")[2]

    @property
    def average(self) -> bool:
        return any(part in AVERAGES for part in self.name.split(".")) or is_averaged_model(self.tensors)

    @property
    def known(self) -> bool:
        return self.last in NETWORKS or self.average or not self.name

    @property
    def entry(self) -> Entry:
        return Entry(self.name, len(self.tensors), self.average)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the weights, whatever is wrapped around the names."""
        return {
            tensor_names((name,))[0]: tensor.size
            for name, tensor in self.tensors.items()
            if name not in COUNTERS and not name.endswith(".num_batches_tracked")
        }


def choose_entry(root: Any, asked: str, read: Callable[[StoredTensor], Any]) -> Chosen:
    """Find the weights in the top-level object of a checkpoint.

    Args:
        root: the object, inert.
        asked: the entry that the user names; empty: by the rule.
        read: reads a tensor.

    Raises:
        CheckpointError: it holds no weights, or several entries do and nothing tells which are meant.
        UsageError: there are no weights in the entry that is asked for.
    """
    found = _Search().candidates(root, "", 0)
    if asked:
        return _asked_for(root, asked, found)
    if not found:
        refuse_root(root)
        raise CheckpointError(_no_weights(root))
    if len(found) > MAX_ENTRIES:
        raise _ambiguous(found)
    if found[0].name == "module":
        refuse_root(root)
    chosen, notes = _by_rule(root, found, read)
    return _taken(chosen, found, notes)


def is_averaged_model(names: Iterable[str]) -> bool:
    """Whether the names are those of an averaging module: a counter, and the weights below ``module``.

    Sources: ``n_averaged`` of ``torch.optim.swa_utils.AveragedModel``, ``steps`` of MMEngine's ``BaseAveragedModel``.
    """
    outside = [name for name in names if not name.startswith("module.")]
    return bool(outside) and COUNTERS.issuperset(outside)


def tensor_names(names: Iterable[str]) -> list[str]:
    """Names without what DataParallel and torch.compile put before them."""
    return [name.removeprefix("module.").removeprefix("_orig_mod.").removeprefix("module.") for name in names]


class _Search:
    """Collects the entries with weights, under limits for all of them together."""

    def __init__(self) -> None:
        self._items = MAX_ITEMS
        self._budget = Budget()

    def candidates(self, value: Any, name: str, depth: int) -> list[_Candidate]:
        value = _kept_by(value)
        if is_module(value):
            return [_Candidate(name, value, self._tensors(value))]
        if not isinstance(value, dict) or {"state", "param_groups"} <= value.keys():
            return []
        self._items -= len(value)
        if self._items < 0:
            raise unsafe(
                f"its dictionaries have more than {MAX_ITEMS:,} entries, the limit of where weights are sought"
            )
        below = []
        for key, item in value.items():
            if depth < MAX_DEPTH and type(key) is str and key.isprintable() and not _is_beside(key):
                below += self.candidates(item, f"{name}.{key}" if name else key, depth + 1)
            if len(below) > MAX_ENTRIES:
                break
        tensors = {key: item for key, item in value.items() if type(key) is str and is_tensor(item)}
        own = _Candidate(name, value, tensors)
        if parts := _averaged_parts(own):
            return parts
        if not tensors or any(each.known for each in below):
            return below
        if any(tensor.size for tensor in tensors.values()):
            return [own, *below]
        return below or ([own] if own.known else [])  # numbers alone, such as a loss, are no weights

    def _tensors(self, model: Record) -> dict[str, StoredTensor]:
        try:
            return tensors_of(model, self._budget)
        except UnsafeCheckpointError:
            raise
        except CheckpointError:  # says so where its weights are taken
            return {}


def _kept_by(value: Any) -> Any:
    """What a network is in: YOLOv5's own object of an average, a pair of it and the number of its updates, or the
    object that a user of the ultralytics package holds, which is a module only since 8.1."""
    if isinstance(value, tuple) and len(value) == 2 and type(value[1]) is int:
        return value[0]
    if isinstance(value, Record) and isinstance(value.state, dict) and not is_module(value):
        for name in ("ema", "model") if value.kind.startswith("ultralytics.") else ("ema",):
            if is_module(value.state.get(name)):
                return value.state[name]
    return value


def _averaged_parts(whole: _Candidate) -> list[_Candidate]:
    """A network and its average in one dictionary, ``model.conv.weight`` beside ``ema_model.conv.weight``."""
    parts: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in whole.tensors.items():
        first, dot, rest = name.partition(".")
        if dot or tensor.size:  # a number alone counts something
            parts.setdefault(first, {})[rest] = tensor
    found = [_Candidate(f"{whole.name}.{p}".removeprefix("."), tensors, tensors) for p, tensors in parts.items()]
    named = [part in AVERAGES for part in parts]
    if sorted(named) != [False, True] or not parts.keys() <= AVERAGES | NETWORKS:
        return []
    return found if found[0].shapes() == found[1].shapes() else []


def _is_beside(key: str) -> bool:
    return key in BESIDE or "optim" in key or "sched" in key


def _by_rule(
    root: Any, found: Sequence[_Candidate], read: Callable[[StoredTensor], Any]
) -> tuple[_Candidate, list[str]]:
    averages = _distinct(c for c in found if c.average)
    raw = _distinct(c for c in found if c.known and not c.average)
    if averages and raw and _is_mmengine(root):
        return raw[0], [
            f"the average of the weights is in {raw[0].name}, where MMEngine saves it: it is taken; "
            f"--entry {averages[0].name} takes the raw ones"
        ]
    if len(averages) > 1 or (not averages and len(raw) > 1) or (not averages and not raw and len(found) > 1):
        raise _ambiguous(found)
    if averages:
        return _average_or_raw(averages[0], raw, found, read)
    chosen = raw[0] if raw else found[0]
    notes = [] if chosen.last in ("", *CUSTOMARY) else [f"the weights are those of the entry {chosen.name}"]
    others = [str(c.entry) for c in found if c is not chosen]
    if others:
        notes.append(f"weights are also in {_some(others)}: --entry NAME takes others")
    return chosen, notes


def _average_or_raw(
    average: _Candidate, raws: Sequence[_Candidate], found: Sequence[_Candidate], read: Callable[[StoredTensor], Any]
) -> tuple[_Candidate, list[str]]:
    name = average.name or "the top level"
    if not raws:
        return average, [f"the average of the weights ({name}) is taken"] if average.name else []
    others = " or ".join(raw.name for raw in raws[:SHOWN])
    taken = f"the average of the weights ({name}) is taken; --entry {others} takes the raw ones"
    if len(raws) > 1:
        return average, [taken]
    raw = raws[0]
    mean, own = average.shapes(), raw.shapes()
    if any(mean[key] != size for key, size in own.items() if key in mean) or not mean.keys() & own.keys():
        raise _ambiguous(found, "they are of two networks")
    missing = [key for key in own if key not in mean]
    counter = average.tensors.get("n_averaged")
    reason = ""
    if missing:
        reason = f"lacks {len(missing):,} of the {len(own):,} tensors of {raw.name} ({_some(missing, 2)})"
    elif counter is not None and counter.numel == 1 and not read(counter).item():
        reason = "has averaged no model yet (n_averaged is 0)"
    if reason:
        return raw, [f"the average of the weights ({name}) {reason}: {raw.name} is taken; --entry {name} takes it"]
    return average, [taken]


def _asked_for(root: Any, asked: str, found: Sequence[_Candidate]) -> Chosen:
    chosen = next((c for c in found if c.name == asked), None)
    if chosen is None:
        value = _lookup(root, asked)
        within = _Search().candidates(value, asked, 0) if value is not None else []
        chosen = within[0] if len(within) == 1 else None
    if chosen is None:
        listed = _some([str(c.entry) for c in found]) or "no entry"
        raise UsageError(f"no weights are in the entry {asked[:80]!r} (--entry); they are in {listed}")
    return _taken(chosen, found, [f"the weights of {chosen.name} are taken (--entry)"])


def _lookup(value: Any, name: str) -> Any:
    """What is below a dotted name: an entry, or the tensors whose names begin with it."""
    if not name:
        return value
    if not isinstance(value, dict):
        return None
    for key in value:
        if type(key) is str and (key == name or name.startswith(f"{key}.")):
            found = _lookup(value[key], name[len(key) + 1 :])
            if found is not None:
                return found
    start = f"{name}."
    group = {k.removeprefix(start): v for k, v in value.items() if type(k) is str and k.startswith(start)}
    return group or None


def _taken(chosen: _Candidate, found: Sequence[_Candidate], notes: Sequence[str]) -> Chosen:
    entries = tuple(replace(c.entry, taken=c.holder is chosen.holder) for c in found)
    if not any(entry.taken for entry in entries):
        entries = (*entries, replace(chosen.entry, taken=True))
    return Chosen(chosen.name, chosen.holder, entries, tuple(notes))


def _distinct(found: Iterable[_Candidate]) -> list[_Candidate]:
    """Without those that hold the same tensors as an earlier one; a pickled model tells more than its state dict."""
    candidates = sorted(found, key=lambda c: not is_module(c.holder))
    result: dict[int, _Candidate] = {}
    if len(candidates) > MAX_COMPARED:
        return candidates
    places = [_places(each) for each in candidates]
    for i, each in enumerate(candidates):
        if not any(places[i] == places[j] for j in result):
            result[i] = each
    return list(result.values())


def _places(candidate: _Candidate) -> dict[str, tuple[Any, ...]]:
    tensors = candidate.tensors.items()
    places = {name: (t.key if t.data is None else id(t.data), t.offset, t.size, t.stride) for name, t in tensors}
    return {plain: places[name] for name, plain in zip(places, tensor_names(places), strict=True)}


def _is_mmengine(root: Any) -> bool:
    """Whether MMEngine's EMAHook wrote a file: it saves the average as ``state_dict`` and the raw weights beside it.

    Source: ``EMAHook.before_save_checkpoint`` of open-mmlab/mmengine (Apache-2.0).
    """
    meta = root.get("meta") if isinstance(root, dict) else None
    return isinstance(meta, dict) and "mmengine_version" in meta and "ema_state_dict" in root


def _ambiguous(found: Sequence[_Candidate], why: str = "nothing tells which are meant") -> CheckpointError:
    listed = _some([str(c.entry) for c in found])
    return CheckpointError(f"weights are in {len(found)} entries, {listed}, and {why}: name one with --entry")


def _some(texts: Sequence[str], shown: int = SHOWN) -> str:
    return ", ".join(text[:80] for text in texts[:shown]) + (", ..." if len(texts) > shown else "")


def _no_weights(root: Any) -> str:
    if isinstance(root, dict):
        found = _some([repr(key)[:40] for key in root]) or "nothing"
        expected = "tensors or a model, here or in an entry such as model, state_dict or ema"
        return f"it holds no weights: expected {expected}; found {found}"
    return f"it holds no weights: expected a dictionary or a torch module; found a {what_is(root)}"
