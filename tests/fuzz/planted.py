"""A target with faults of every kind, so that a run is seen to find them."""

from __future__ import annotations

import os
from random import Random

from deploykit.errors import UsageError
from tests.fuzz.target import Files, Target
from tests.fuzz.watch import nothing_runs

__all__ = ["KINDS"]

KINDS = ("accepted", "refused", "raises", "aborts", "hangs", "swells", "executes")


class Planted(Target):
    """Does what its input says."""

    name, memory = "tests.fuzz.planted", 64 << 20

    def make(self, random: Random) -> Files:
        return {"kind": random.choice(KINDS).encode()}

    def take(self, files: Files) -> None:
        kind = files["kind"].decode()
        if kind == "refused":
            raise UsageError("as is right")
        if kind == "raises":
            raise KeyError("a fault")
        if kind == "aborts":
            os.abort()
        while kind == "hangs":
            pass
        if kind == "swells":
            bytearray(100 << 20)[::4096] = b"x" * (100 << 8)
        if kind == "executes":
            with nothing_runs(self.folder / "kind"):
                exec("1")


TARGET = Planted
