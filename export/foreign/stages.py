"""A prepared graph beside its source, stage by stage: the numbers of a graph whose later parts follow from a choice.

A detector may choose in its middle: of some thousand queries the best 300 go into a decoder. Two orders of summation
make two rows of almost equal scores change places, or others be chosen, and all that follows is different though
nothing is wrong. So each stage gets what its source gives: from the same values the same rows are chosen, and every
value that is left to compare follows from the same rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from deploykit.export.foreign.choice import chooses, inner_nodes, taken_by
from deploykit.runtime.arrays import Array
from deploykit.runtime.backends import ort
from deploykit.runtime.session import Session

__all__ = ["StagedSession", "open_stages"]

GIVEN = "_given_by_source"


def open_stages(source: Path, prepared: ir.Model, folder: Path) -> tuple[Session, Session] | None:
    """Open a source, whose outputs are then also the values between stages, and its prepared graph in stages.

    A stage begins with each operator that chooses. The prepared graph is not changed; ``folder`` takes two files.

    Returns:
        The two sessions, with the same inputs and the same names of outputs; None: the source has no value of the name
        of one between stages, so that it cannot be given.
    """
    graph = prepared.clone()
    between = _between(graph.graph)
    theirs = ir.load(source)
    known = {str(value.name): value for node in theirs.graph for value in node.outputs}
    if not between or any(str(value.name) not in known for value in between):
        return None
    for value, users in between.items():
        given = ir.Value(name=f"{value.name}{GIVEN}", type=value.type, shape=value.shape)
        graph.graph.inputs.append(given)
        for user in users:
            for place, taken in enumerate(user.inputs):
                if taken is value:
                    user.replace_input_with(place, given)
        for outputs, own in ((graph.graph.outputs, value), (theirs.graph.outputs, known[str(value.name)])):
            if own not in outputs:
                own.type = own.type or value.type
                outputs.append(own)
    files = folder / "source.onnx", folder / "stages.onnx"
    for model, file in zip((theirs, graph), files, strict=True):
        ir.save(model, file, external_data=f"{file.name}.data")
    first = ort.open_session(files[0], provider="cpu")
    return first, StagedSession(first, ort.open_session(files[1], provider="cpu"))


class StagedSession(Session):
    """A network in stages, each of which gets the values that ``source`` gives before it; ``source`` stays open."""

    def __init__(self, source: Session, stages: Session) -> None:
        self._source, self._stages = source, stages
        self.inputs, self.outputs = source.inputs, source.outputs
        self.metadata, self.providers, self.notes = stages.metadata, stages.providers, stages.notes
        self.threads, self.threads_from = stages.threads, stages.threads_from

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See :meth:`Session.run`."""
        before = self._source.run(inputs)
        given = {i.name: before[i.name.removesuffix(GIVEN)] for i in self._stages.inputs if i.name.endswith(GIVEN)}
        found = self._stages.run({**inputs, **given})
        return {info.name: found[info.name] for info in self.outputs}

    def close(self) -> None:
        """See :meth:`Session.close`."""
        self._stages.close()


def _between(graph: ir.Graph) -> dict[ir.Value, list[ir.Node]]:
    """The values that a later stage takes, and its nodes that take them, also inside of other nodes."""
    stages: dict[ir.Node, int] = {}
    found: dict[ir.Value, list[ir.Node]] = {}
    for node in graph:
        producers = {value: value.producer() for value in taken_by(node)}
        stage = max((stages[producer] for producer in producers.values() if producer in stages), default=0)
        stages[node] = stage + chooses(node)
        for value, producer in producers.items():
            if producer is not None and producer in stages and stages[producer] < stages[node]:
                users = [each for each in (node, *inner_nodes(node)) if value in each.inputs]
                found.setdefault(value, []).extend(users)
    return found
