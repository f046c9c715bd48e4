"""Signatures of artefacts, by the library ``model-signing`` (the extra ``signing``).

A signature is a file of its own, a Sigstore bundle over a list of files with their SHA-256. That of a model
(``best.onnx.sig``) lists the model and what belongs to it: external data, parity report, record, second stage. That of
a folder (``model.sig`` in it) lists all of its files. The library's own program verifies both: of a model as
``model_signing verify key FOLDER --signature best.onnx.sig --ignore_unsigned_files ...``.

Keys and certificates need no network. Keyless signatures of Sigstore do, to sign and to verify.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploykit.atomic import temporary_folder, write_atomic
from deploykit.errors import ArtefactError, OutputError, UsageError, import_extra
from deploykit.runtime.files import existing_file, exists, is_folder
from deploykit.runtime.integrity.chain import belonging

__all__ = ["Signer", "Verifier", "sign", "signature_path", "verify_signature"]

IN_FOLDER = "model.sig"


@dataclass(frozen=True)
class Signer:
    """What signs: a private key, a key with its certificate, or Sigstore's identity of a person or a job.

    Attributes:
        private_key: a PEM file with a key of the curve P-256, P-384 or P-521. None: Sigstore, which needs the network.
        password: of that file; empty: it has none.
        certificate: a PEM file with the certificate of the key; None: the key alone.
        chain: PEM files with the certificates that certify it, which travel in the signature.
        identity_token: Sigstore: an OpenID token; empty: that of the CI job, if ``ambient``, or a browser asks.
        ambient: Sigstore: take the identity of the CI job.
        trust_config: Sigstore: a file that describes another instance of it.
    """

    private_key: Path | None = None
    password: str = ""
    certificate: Path | None = None
    chain: tuple[Path, ...] = ()
    identity_token: str = ""
    ambient: bool = False
    trust_config: Path | None = None

    def configured(self, config: Any) -> Any:
        """Return the library's configuration with this signer."""
        if self.private_key is None:
            return config.use_sigstore_signer(
                identity_token=self.identity_token or None,
                use_ambient_credentials=self.ambient,
                trust_config=self.trust_config,
            )
        if self.certificate is None:
            # The library hands the password to a function that takes bytes.
            password: Any = self.password.encode() or None
            return config.use_elliptic_key_signer(private_key=self.private_key, password=password)
        if self.password:
            raise UsageError(
                "a key that comes with a certificate cannot have a password: model-signing takes none there"
            )
        return config.use_certificate_signer(
            private_key=self.private_key, signing_certificate=self.certificate, certificate_chain=self.chain
        )


@dataclass(frozen=True)
class Verifier:
    """Whose signature is expected: that of a key, of a certificate, or of an identity at Sigstore.

    Attributes:
        public_key: a PEM file with the public key.
        chain: PEM files with the certificates that are trusted to certify the signer's.
        identity, provider: Sigstore: whose identity, and the provider that knows it; this needs the network.
        trust_config: Sigstore: a file that describes another instance of it.

    Raises:
        UsageError: it is not exactly one of the three.
    """

    public_key: Path | None = None
    chain: tuple[Path, ...] = ()
    identity: str = ""
    provider: str = ""
    trust_config: Path | None = None

    def __post_init__(self) -> None:
        if [bool(self.public_key), bool(self.chain), bool(self.identity)].count(True) != 1:
            raise UsageError("a signature is that of one key, certificate or identity: say which one is expected")
        if bool(self.identity) != bool(self.provider):
            raise UsageError("an identity and the provider that knows it go together")

    def configured(self, config: Any) -> Any:
        """Return the library's configuration with this verifier."""
        if self.public_key is not None:
            return config.use_elliptic_key_verifier(public_key=self.public_key)
        if self.chain:
            return config.use_certificate_verifier(certificate_chain=self.chain)
        return config.use_sigstore_verifier(
            identity=self.identity, oidc_issuer=self.provider, trust_config=self.trust_config
        )


def signature_path(path: Path) -> Path:
    """Return where the signature of a model or a folder lies if nothing else is said."""
    return path / IN_FOLDER if is_folder(path) else path.with_name(f"{path.name}.sig")


def sign(path: str | Path, signer: Signer, *, out: str | Path | None = None, replace: bool = False) -> Path:
    """Sign a model with what belongs to it, or all files of a folder.

    Args:
        path: the model or the folder.
        signer: what signs.
        out: the signature; None: that of :func:`signature_path`.
        replace: replace a file that is there.

    Returns:
        The signature.

    Raises:
        NotFoundError: a file does not exist. UsageError: a key or a certificate cannot be used.
        ArtefactError: a file is a symbolic link, or cannot be read.
        OutputError: the signature exists, or cannot be written. MissingDependencyError: the library is not installed.
    """
    library: Any = import_extra("model_signing", "signing")
    place = _place(path)
    signature = Path(out).expanduser() if out is not None else signature_path(place)
    if exists(signature) and not replace:
        raise OutputError(f"{signature} exists: choose another path, or pass --force to replace it")
    with _library_errors("these keys and certificates cannot sign", UsageError):
        config = signer.configured(library.signing.Config())
    folder = place if is_folder(place) else place.parent
    chosen = None if is_folder(place) else belonging(place)
    config.set_hashing_config(_hashing(library, _below(signature, folder), chosen))
    with temporary_folder() as work:
        written = work / "signature"
        with _library_errors(f"{place} cannot be signed", ArtefactError):
            config.sign(folder, written)
        write_atomic(signature, written.read_bytes())
    return signature


def verify_signature(path: str | Path, signature: str | Path, verifier: Verifier) -> tuple[Path, ...]:
    """Check that a model or a folder is what was signed, and by whom.

    Args:
        path: the model, which must be among what was signed, or the folder, of which every file must be.
        signature: the file of the signature.
        verifier: whose signature is expected.

    Returns:
        The files that were signed.

    Raises:
        ArtefactError: the signature is another one's, is damaged, or is of other files.
        NotFoundError, UsageError, MissingDependencyError: see :func:`sign`.
    """
    library: Any = import_extra("model_signing", "signing")
    place, file = _place(path), existing_file(signature, "a signature")
    with _library_errors("these keys and certificates cannot verify", UsageError):
        config = verifier.configured(library.verifying.Config())
    single = not is_folder(place)
    folder = place.parent if single else place
    hashing = _hashing(library, _below(file, folder), None, model=place if single else None)
    config.set_hashing_config(hashing)
    config.set_ignore_unsigned_files(single)
    with _library_errors(f"{file} is not a valid signature of {place}", ArtefactError):
        config.verify(folder, file)
    signed = tuple(hashing.hashed)
    if single and place not in signed:
        raise ArtefactError(f"{file} is a valid signature, but of other files than {place}: {_names(signed)}")
    return signed


def _place(path: str | Path) -> Path:
    place = Path(path).expanduser()
    return place if is_folder(place) else existing_file(place, "a model or a folder")


def _names(files: Sequence[Path]) -> str:
    return ", ".join(file.name for file in files[:5]) or "none"


def _below(file: Path, folder: Path) -> list[Path]:
    """Return the path of a file below a folder, as the library takes what it ignores; empty: it lies elsewhere."""
    place, above = file.resolve(), folder.resolve()
    return [place.relative_to(above)] if place.is_relative_to(above) else []


def _hashing(library: Any, ignored: Sequence[Path], chosen: Iterable[Path] | None, *, model: Path | None = None) -> Any:
    """Return what the library hashes files with, which takes only some files and notes which.

    Args:
        library: the library.
        ignored: paths below the folder that are left out: that of the signature itself.
        chosen: the files that are signed; None: all, or those that a signature lists.
        model: when a signature is verified: the model, which may have been signed alone by the library's program.
    """

    class Hashing(library.hashing.Config):  # type: ignore[misc]  # the module is known at run time only
        hashed: list[Path]

        def hash(self, model_path: Any, *, files_to_hash: Any = None) -> Any:
            folder = Path(model_path)
            files = chosen if files_to_hash is None else [Path(file) for file in files_to_hash]
            if model is not None and files == [folder]:  # the one entry of such a signature is "."
                self.hashed = [model]
                return super().hash(model)
            found = super().hash(folder, files_to_hash=files)
            self.hashed = [folder / entry.identifier for entry in found.resource_descriptors()]
            return found

    return Hashing().set_ignored_paths(paths=ignored)


@contextlib.contextmanager
def _library_errors(what: str, kind: type[ArtefactError] | type[UsageError]) -> Iterator[None]:
    """Turn the library's errors, which have no common class, into one of ours; what it prints goes to stderr."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except (ArtefactError, UsageError):
        raise
    except Exception as e:
        changed = re.findall(r"Hash mismatch for \\?'([^'\\]+)", str(e))
        reason = " ".join(str(e).split()) or type(e).__name__
        if changed:  # the library's own text has every digest as Python's bytes
            reason = f"other content than was signed: {', '.join(changed[:5])}".replace(": .", "")
        raise kind(f"{what}: {reason:.500}") from e
