"""The fenced blocks of the documents, and what is wrong with each; the documents' tests ask here.

A line ``<!-- run -->`` above a block of bash or Python has it executed, ``<!-- spec -->`` above JSON has it read as a
spec. Every other block is parsed by the rules of its language.
"""

from __future__ import annotations

import ast
import builtins
import configparser
import contextlib
import importlib
import importlib.util
import inspect
import json
import re
import shlex
import shutil
import subprocess
import textwrap
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from deploykit.cli import COMMANDS, command_parser
from deploykit.errors import UsageError
from deploykit.runtime import options
from deploykit.spec import ModelSpec

__all__ = ["LANGUAGES", "Block", "blocks_of", "commands_of", "indented_blocks", "problems", "unresolved"]

ROOT = Path(__file__).resolve().parent.parent

LANGUAGES = ("bash", "cpp", "csv", "dockerfile", "html", "ini", "json", "jsonl", "python", "text", "toml", "yaml")
"""What may stand behind the fence; besides, ``{name}``, a directive of the site."""

PROGRAMS = frozenset(
    """
    apt-get bash brew cat cd chmod cmake conda cp ctest curl docker echo export git head jq kubectl ls make mkdir
    model_signing mv nvidia-smi openssl pip pipx pytest python rm scp source ssh sudo systemctl tar
    trtexec tritonserver uname unzip uv wget
    """.split()  # noqa: SIM905
)
"""Programs that a block of bash may call besides ``deploykit``, a script of the project, and a program that it made."""


@dataclass(frozen=True)
class Block:
    """A fenced block: the line of its fence in the page, its language, its text, and the comments above it."""

    line: int
    language: str
    text: str
    marks: tuple[str, ...] = ()


def blocks_of(page: str) -> list[Block]:
    """Every fenced block of a page in Markdown, in order."""
    found: list[Block] = []
    marks: list[str] = []
    fence, start, language, body = "", 0, "", [""]
    for number, line in enumerate(page.splitlines(), 1):
        words = line.strip()
        if fence:
            if words == fence:
                text = textwrap.dedent("\n".join(body))
                found.append(Block(start, language, text, tuple(marks)))
                fence, marks = "", []
            else:
                body.append(line)
        elif mark := re.fullmatch(r"<!-- ([\w ]+) -->", words):
            marks.append(mark[1])
        elif opening := re.match(r"(`{3,}|~{3,})\s*(.*)", words):
            fence, start, language, body = opening[1], number, opening[2], []
        elif words:
            marks = []
    assert not fence, f"the fence of line {start} is not closed"
    return found


def indented_blocks(page: str) -> list[int]:
    """The lines at which code begins that is indented instead of fenced; text under a list item is none."""
    found, in_fence, in_list, before = [], False, False, ""
    for number, line in enumerate(page.splitlines(), 1):
        words = line.strip()
        if words.startswith(("```", "~~~")):
            in_fence = not in_fence
        elif not in_fence and words:
            if re.match(r"([-*+]|\d+[.)])\s", line):
                in_list = True
            elif not line.startswith((" ", "\t")):
                in_list = False
            elif re.match(r" {4}|\t", line) and not before.strip() and not in_list:
                found.append(number)
        before = line
    return found


def commands_of(text: str) -> list[list[str]]:
    """The words of each command in a block of bash: without comments, variables before it, redirections."""
    commands = []
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="();<>|&")
        lexer.whitespace_split = True
        words: list[str] = []
        skip = False
        for token in [*lexer, ";"]:
            if set(token) <= set("();|&"):
                while words and re.fullmatch(r"\w+=.*", words[0]):
                    del words[0]
                commands += [words] if words else []
                words = []
            elif set(token) <= set("<>"):
                skip = True
            elif skip:
                skip = False
            else:
                words.append(token)
    return commands


def _wrong_with_deploykit(words: list[str]) -> str | None:
    if not words or words[0].startswith("-"):
        return None
    if words[0] not in COMMANDS:
        return "there is no such command"
    try:
        command_parser(words).parse_args(words)
    except SystemExit:  # --help and --version end there
        return None
    except UsageError as e:
        return str(e)
    return None


def _wrong_with_command(words: list[str]) -> str | None:
    program, rest = words[0], words[1:]
    if program == "deploykit":
        return _wrong_with_deploykit(rest)
    if program.startswith(("scripts/", ".", "build/", "/")):
        return None if not program.startswith("scripts/") or (ROOT / program).is_file() else "no such script"
    if program == "make":
        if rest[:1] == ["-C"]:
            return None if (ROOT / rest[1] / "Makefile").is_file() else "no Makefile in that folder"
        targets = re.findall(r"(?m)^([\w-]+):", (ROOT / "Makefile").read_text())
        wanted = [word for word in rest if not word.startswith("-") and "=" not in word]
        return None if set(wanted) <= set(targets) else "the Makefile has no such target"
    if program == "python" and rest[:1] == ["-m"]:
        with contextlib.suppress(ModuleNotFoundError):
            if importlib.util.find_spec(rest[1]):
                return None
        return None if rest[1] in ("venv", "http.server") else "no such module"
    if program == "python" and rest and rest[0].startswith(("benchmarks/", "examples/", "scripts/")):
        return None if (ROOT / rest[0]).is_file() else "no such file"
    return None if program in PROGRAMS else "an unknown program"


def _wrong_with_bash(block: Block) -> Iterator[str]:
    for words in commands_of(block.text):
        if wrong := _wrong_with_command(words):
            yield f"{shlex.join(words)}: {wrong}"


def _target(node: ast.expr, names: dict[str, Any]) -> Any:
    """What a chain of names leads to: ``a.b.c`` of the imported ``a``; AttributeError, or KeyError where unknown."""
    if isinstance(node, ast.Attribute):
        return getattr(_target(node.value, names), node.attr)
    if isinstance(node, ast.Name):
        return names[node.id]
    raise KeyError(ast.dump(node))


def _options_of(function: Any) -> set[str] | None:
    """The keywords that a function takes; None where it takes any, or nothing tells."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    found = {p.name for p in parameters if p.kind is not p.VAR_KEYWORD}
    for rest in (p for p in parameters if p.kind is p.VAR_KEYWORD):
        named = re.fullmatch(r"Unpack\[(\w+)\]", str(rest.annotation))
        keywords = getattr(options, named[1], None) if named else None
        if keywords is None:
            return None
        found |= set(keywords.__annotations__)
    return found


def _bound(tree: ast.AST) -> set[str]:
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    names |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    names |= {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    return names | {node.name for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler) and node.name}


def _import(node: ast.Import | ast.ImportFrom, names: dict[str, Any]) -> None:
    for alias in node.names:
        module = alias.name if isinstance(node, ast.Import) else str(node.module)
        bound = alias.asname or (alias.name.split(".")[0] if isinstance(node, ast.Import) else alias.name)
        names[bound] = None
        if module.split(".")[0] == "deploykit":
            found = importlib.import_module(module)
            if isinstance(node, ast.ImportFrom):
                found = getattr(found, alias.name)
            elif not alias.asname:
                found = importlib.import_module(bound)
            names[bound] = found


def unresolved(source: str, names: dict[str, Any]) -> Iterator[str]:
    """What a block of Python names that does not exist; ``names`` are those of the page's earlier blocks, and grow.

    Imports of deploykit are executed, chains of attributes followed, keywords of calls looked for in the signature.
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            try:
                _import(node, names)
            except (ImportError, AttributeError) as e:
                yield str(e)
    known = {name: value for name, value in names.items() if value is not None}
    bound = _bound(tree)
    known = {name: value for name, value in known.items() if name not in bound}
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Name)
            and node.id not in names
            and node.id not in bound
            and not hasattr(builtins, node.id)
        ):
            yield f"{node.id} is not defined on this page"
        if isinstance(node, ast.Attribute):
            with contextlib.suppress(KeyError):
                try:
                    _target(node, known)
                except AttributeError as e:
                    yield str(e)
        if isinstance(node, ast.Call):
            with contextlib.suppress(KeyError, AttributeError):
                taken = _options_of(_target(node.func, known))
                for keyword in node.keywords:
                    if taken is not None and keyword.arg and keyword.arg not in taken:
                        yield f"{ast.unparse(node.func)} has no option {keyword.arg}"
    names.update(dict.fromkeys(bound))


def _wrong_with_json(block: Block) -> Iterator[str]:
    value = json.loads(block.text)
    if "spec" in block.marks:
        ModelSpec.from_json(json.dumps({"input": {}, **value}))
    yield from ()


def _wrong_with_cpp(block: Block) -> Iterator[str]:
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        return
    command = [compiler, "-fsyntax-only", "-std=c++17", f"-I{ROOT / 'cpp_plugins'}", "-x", "c++", "-"]
    done = subprocess.run(command, input=block.text, capture_output=True, text=True, check=False)
    if done.returncode and not re.search(r"fatal error: .*(No such file|file not found)", done.stderr):
        yield done.stderr[:400]


def _wrong_with_text(block: Block) -> Iterator[str]:
    words = block.text.split()
    if words and words[0].rstrip(":") == words[0] and words[0] in {"deploykit", "$", *PROGRAMS}:
        yield f"it is output, but begins with the command {words[0]!r}: commands are in blocks of bash"


def _parsed(parse: Callable[[str], Any]) -> Callable[[Block], Iterator[str]]:
    def check(block: Block) -> Iterator[str]:
        parse(block.text)
        yield from ()

    return check


CHECKS: dict[str, Callable[[Block], Iterator[str]]] = {
    "bash": _wrong_with_bash,
    "cpp": _wrong_with_cpp,
    "ini": _parsed(lambda text: configparser.ConfigParser().read_string(text)),
    "json": _wrong_with_json,
    "jsonl": _parsed(lambda text: [json.loads(line) for line in text.splitlines()]),
    "text": _wrong_with_text,
    "toml": _parsed(tomllib.loads),
    "yaml": _parsed(lambda text: list(yaml.safe_load_all(text))),
}


def problems(page: str) -> list[str]:
    """What is wrong with the blocks of a page, each with its line."""
    found = [f"line {line}: code is indented; fence it, with its language" for line in indented_blocks(page)]
    names: dict[str, Any] = {}
    for block in blocks_of(page):
        if block.language.startswith("{"):
            continue
        try:
            if block.language not in LANGUAGES:
                wrong = [f"the language is {block.language!r}, not one of {', '.join(LANGUAGES)}"]
            elif block.language == "python":
                wrong = list(unresolved(block.text, names))
            else:
                wrong = list(CHECKS[block.language](block)) if block.language in CHECKS else []
        except Exception as e:  # a parser's error, of whatever kind
            wrong = [f"{type(e).__name__}: {e}"]
        found += [f"line {block.line}: {each}" for each in wrong]
    return found
