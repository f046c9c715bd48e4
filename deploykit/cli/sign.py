"""``deploykit sign``: sign a model with what belongs to it, or a folder."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from deploykit.cli._display import print_json
from deploykit.cli._signing import add_chain, add_trust
from deploykit.errors import UsageError

PASSWORD = "DEPLOYKIT_KEY_PASSWORD"

EXAMPLES = (
    ("deploykit sign best.onnx --private-key key.pem", "best.onnx.sig, over the file and what belongs to it"),
    ("deploykit sign repository --private-key key.pem", "repository/model.sig, over every file in the folder"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("path", metavar="PATH", help="a model, which is signed with what belongs to it, or a folder")
    signer = parser.add_argument_group("what signs")
    signer.add_argument(
        "--private-key",
        type=Path,
        metavar="FILE",
        help=f"a key of the curve P-256, P-384 or P-521 (PEM); its password is in {PASSWORD}",
    )
    signer.add_argument("--signing-certificate", type=Path, metavar="FILE", help="the certificate of the key (PEM)")
    add_chain(signer, "certificates that certify that one, and travel in the signature (PEM; can be repeated)")
    signer.add_argument("--sigstore", action="store_true", help="your identity at Sigstore, which needs the network")
    signer.add_argument("--use-ambient-credentials", action="store_true", help="--sigstore: the identity of a CI job")
    signer.add_argument("--identity-token-file", type=Path, metavar="FILE", help="--sigstore: an OpenID token")
    add_trust(signer)
    parser.add_argument(
        "--signature",
        type=Path,
        metavar="FILE",
        help="where it is written (default: PATH.sig, or model.sig in a folder)",
    )
    parser.add_argument("--force", action="store_true", help="replace a signature that exists")
    parser.add_argument("--json", action="store_true", help="print the path as one JSON document")


def run(args: argparse.Namespace) -> int:
    """Sign, and say where the signature is."""
    _check(args)
    from deploykit.runtime.files import existing_file
    from deploykit.runtime.integrity.signing import Signer, sign

    def file(path: Path | None, what: str) -> Path | None:
        return None if path is None else existing_file(path, what)

    token = file(args.identity_token_file, "an identity token")
    signer = Signer(
        private_key=file(args.private_key, "a private key"),
        password=os.environ.get(PASSWORD, ""),
        certificate=file(args.signing_certificate, "a certificate"),
        chain=tuple(existing_file(each, "a certificate") for each in args.certificate_chain),
        identity_token=token.read_text(encoding="utf-8").strip() if token else "",
        ambient=args.use_ambient_credentials,
        trust_config=args.trust_config,
    )
    signature = sign(args.path, signer, out=args.signature, replace=args.force)
    if args.json:
        print_json({"signature": signature})
    else:
        print(signature)
    return 0


def _check(args: argparse.Namespace) -> None:
    """Check that the options go together.

    Raises:
        UsageError: they do not.
    """
    if (args.private_key is None) != args.sigstore:
        raise UsageError("name what signs: --private-key FILE, or --sigstore")
    of_sigstore = args.use_ambient_credentials or args.identity_token_file or args.trust_config
    if of_sigstore and not args.sigstore:
        raise UsageError("--use-ambient-credentials, --identity-token-file and --trust-config go with --sigstore")
    if args.signing_certificate and not args.private_key:
        raise UsageError("--signing-certificate goes with --private-key, the key that it is of")
    if args.certificate_chain and not args.signing_certificate:
        raise UsageError("--certificate-chain goes with --signing-certificate")
