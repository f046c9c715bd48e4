"""``deploykit inspect``: describe a file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.cli._display import console, note, print_json
from deploykit.cli._loading import loading_flags, loading_of
from deploykit.cli._model import add_model, model_of
from deploykit.cli._signing import add_verifier, verifier_of

if TYPE_CHECKING:
    from deploykit.runtime.integrity.signing import Verifier

MAX_ENTRIES = 12  # of a list; the rest is not shown

EXAMPLES = (
    ("deploykit inspect best.pt", "what is in a checkpoint, without running it"),
    ("deploykit inspect best.onnx --json", "an export and its spec as JSON"),
    ("deploykit inspect best.trt --verify", "is every file still what it was built from?"),
    (
        "deploykit inspect best.onnx --verify --signature best.onnx.sig --public-key key.pub",
        "is it what was signed, and by this key?",
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_model(parser, "a checkpoint or an exported model; with --verify also a folder", metavar="FILE")
    loading_flags().add(parser)
    parser.add_argument(
        "--draft-spec",
        action="store_true",
        help="print a spec (JSON) for an ONNX file that carries none, with what is known and what has to be filled in",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="read the file and all that it was made from and with, as far as it lies beside it, and compare their "
        "SHA-256; exit code 50: one differs, or nothing names that of FILE",
    )
    add_verifier(parser)
    parser.add_argument("--json", action="store_true", help="print everything as one JSON document")


def run(args: argparse.Namespace) -> int:
    """Print the facts about the file, then the notes."""
    from deploykit.export.inspection import draft_of_file, inspect_file

    if args.draft_spec:
        draft = draft_of_file(model_of(args))
        for text in (*draft.notes, *(f"fill in {field}: {wanted}" for field, wanted in draft.unknown.items())):
            note(text)
        print(draft.to_json())
        return 0
    verifier = verifier_of(args)
    if args.verify:
        return _verify(model_of(args), args, verifier)
    found = inspect_file(model_of(args), loading_of(args))
    if args.json:
        print_json(found.to_dict())
        return 0
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, value in found.facts.items():
        table.add_row(name, escape(_text(value)))
    for text in found.notes:
        table.add_row("note", escape(text))
    console().print(table)
    return 0


def _verify(path: str, args: argparse.Namespace, verifier: Verifier | None) -> int:
    """Print the links of a chain and the result of a signature.

    Raises:
        ArtefactError: a file differs, nothing names the hash of this one, or the signature is not valid.
    """
    from deploykit.errors import ArtefactError
    from deploykit.runtime.integrity.chain import verify_chain

    signed: tuple[Path, ...] = ()
    if verifier is not None:
        from deploykit.runtime.integrity.signing import verify_signature

        signed = verify_signature(path, args.signature, verifier)
    chain = verify_chain(path)
    if args.json:
        signature = {"file": args.signature, "signed": signed} if verifier else None
        print_json({**chain.to_dict(), "ok": not chain.problem or bool(signed), "signature": signature})
    else:
        from rich.markup import escape
        from rich.table import Table

        table = Table("", "file", "compared with", "", box=None, pad_edge=False)
        for link in chain.links:
            table.add_row(link.state, escape(link.file.name), escape(link.named_by or "nothing"), escape(link.says))
        for file in signed:
            table.add_row("ok", escape(file.name), escape(str(args.signature)), "signed")
        console().print(table)
    if chain.differing or (chain.problem and not signed):
        raise ArtefactError(chain.problem)
    return 0


def _text(value: Any) -> str:
    if value in (None, ""):
        return "unknown"
    if isinstance(value, dict):
        parts = [f"{k}: {_text(v)}" for k, v in value.items()]
    elif isinstance(value, (list, tuple)):
        parts = [str(v) for v in value]
    else:
        return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    shown = ", ".join(parts[:MAX_ENTRIES])
    return f"{len(parts)}: {shown}, ..." if len(parts) > MAX_ENTRIES else shown or "none"
