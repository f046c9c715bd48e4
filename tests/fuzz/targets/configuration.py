"""Configuration files: tables of commands with options of every kind, and TOML that is none."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from deploykit.cli._commands import COMMANDS, Command, command_parser
from deploykit.cli._config import with_config
from tests.fuzz.mutate import STRANGE, changed_bytes
from tests.fuzz.target import Files, Target

WORDS = ("predict", "export", "eval", "bench", "serve", "cluster", "create", "compare", "inspect", "verify")
LITERALS = (
    "1979-05-27", "1979-05-27T07:32:00Z", "07:32:00", "0x_", "0b11", "+inf", "-nan", "1e9999", "'''x'''", "{a = 1}",
    "[[1]]", "9" * 5000, '"\\uD800"', "[" * 3000, "{a=" * 500,
)  # fmt: skip


class Configuration(Target):
    """A file that ``--config`` names, read as the command line reads it."""

    name, memory = "configuration", 128 << 20

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.options = {name: sorted(Command(name).options) for name in COMMANDS}

    def make(self, random: Random) -> Files:
        command = random.choice(WORDS)
        name = random.choice(("deploykit.toml", "deploykit.toml", "pyproject.toml"))
        lines = []
        for table in random.sample(
            (command, "defaults", random.choice(sorted(COMMANDS)), "unknown"), random.randint(1, 3)
        ):
            prefix = "tool.deploykit." if name == "pyproject.toml" else ""
            lines.append(f"[{prefix}{table}]")
            known = self.options.get(table) or self.options[command]
            for option in random.sample(known, min(len(known), random.randint(0, 4))):
                key = option.lstrip("-").replace("-", random.choice("-_"))
                lines.append(f"{key} = {_literal(random)}")
        data = "\n".join(lines).encode("utf-8", "replace")
        return {name: changed_bytes(random, data) if random.random() < 0.3 else data, "command": command.encode()}

    def take(self, files: Files) -> None:
        path = self.written(files)
        words = [files["command"].decode(), "--config", str(path), "m.onnx"]
        line = command_parser(words)
        words, _ = line.unaliased(words)
        line.parse_args(with_config(line, words).words)


def _literal(random: Random) -> str:
    if random.random() < 0.2:
        return random.choice(LITERALS)
    value: Any = random.choice((*STRANGE, 1, 2, 0.5, "cpu", "auto", "fp16", True, False, [640, 640], ["a.jpg"]))
    if isinstance(value, dict):
        return "{}" if not value else "{ a = 1 }"
    if value is None or isinstance(value, float):
        return str(value)
    return json.dumps(value)


TARGET = Configuration
