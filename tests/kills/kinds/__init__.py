"""The kinds of commands that are killed."""

from __future__ import annotations

from tests.kills.kind import Kind
from tests.kills.kinds.exports import BUILD, EXPORT, INT8
from tests.kills.kinds.fetches import FETCH
from tests.kills.kinds.others import CLUSTER, CREATE, EVAL, PACKAGE, PLUGINS
from tests.kills.kinds.predictions import PREDICT, RESUME, VIDEO

__all__ = ["KINDS"]

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (EXPORT, INT8, BUILD, PREDICT, RESUME, VIDEO, EVAL, CREATE, FETCH, PACKAGE, PLUGINS, CLUSTER)
}
