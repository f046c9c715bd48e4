"""Whose signature is expected: the options of ``inspect --verify``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.errors import UsageError

if TYPE_CHECKING:
    from deploykit.runtime.integrity.signing import Verifier

WHOSE = ("--public-key", "--certificate-chain", "--identity", "--identity-provider", "--trust-config")


def add_verifier(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    group = parser.add_argument_group("signature (with --verify; docs/integrity.md)")
    group.add_argument("--signature", metavar="FILE", help="the signature that deploykit sign wrote")
    group.add_argument("--public-key", type=Path, metavar="FILE", help="it must be by this key (PEM)")
    add_chain(group, "it must be by a certificate that these certify (PEM; the option can be repeated)")
    group.add_argument("--identity", metavar="NAME", help="it must be by this identity at Sigstore; needs the network")
    group.add_argument("--identity-provider", metavar="URL", help="the provider that knows the identity")
    add_trust(group)


def add_chain(parser: argparse._ArgumentGroup, meaning: str) -> None:
    """Declare the option of certificates."""
    parser.add_argument("--certificate-chain", type=Path, action="append", default=[], metavar="FILE", help=meaning)


def add_trust(parser: argparse._ArgumentGroup) -> None:
    """Declare the option of another Sigstore."""
    parser.add_argument(
        "--trust-config", type=Path, metavar="FILE", help="another instance of Sigstore than the public"
    )


def verifier_of(args: argparse.Namespace) -> Verifier | None:
    """Return whose signature is expected; None: no signature is given.

    Raises:
        UsageError: an option is missing, or is without its like. NotFoundError: there is no such file.
    """
    given = [option for option in WHOSE if getattr(args, option[2:].replace("-", "_"))]
    if args.signature is None:
        if given:
            raise UsageError(f"{given[0]} says whose signature is expected: name the signature's file with --signature")
        return None
    if not args.verify:
        raise UsageError("--signature goes with --verify")
    from deploykit.runtime.files import existing_file
    from deploykit.runtime.integrity.signing import Verifier

    return Verifier(
        public_key=existing_file(args.public_key, "a public key") if args.public_key else None,
        chain=tuple(existing_file(file, "a certificate") for file in args.certificate_chain),
        identity=args.identity or "",
        provider=args.identity_provider or "",
        trust_config=args.trust_config,
    )
