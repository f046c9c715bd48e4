"""Signatures by the real library, where the extra is installed; by a stand-in, what it is asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deploykit.cli import main
from deploykit.errors import ArtefactError, DeployError, MissingDependencyError, OutputError, UsageError
from deploykit.runtime.engine_record import parity_report_path
from deploykit.runtime.integrity.signing import Signer, Verifier, sign, signature_path, verify_signature

needs_library = pytest.mark.skipif(
    "not __import__('importlib.util').util.find_spec('model_signing')", reason="the extra signing is not installed"
)


def write_key(place: Path, *, password: bytes = b"") -> Any:
    """Write ``place.pem`` and ``place.pub``."""
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    lock = form.BestAvailableEncryption(password) if password else form.NoEncryption()
    private = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, lock)
    public = key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
    place.with_suffix(".pem").write_bytes(private)
    place.with_suffix(".pub").write_bytes(public)
    return key


def write_certificate(place: Path, key: Any, *, of: Any, by: str, authority: bool) -> None:
    """Write ``place.crt``: a certificate of the public key of ``of``, by the key of the authority ``by``."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

    now = datetime.now(UTC)
    usage = x509.KeyUsage(True, False, False, False, False, authority, authority, False, False)
    made = (
        x509.CertificateBuilder()
        .subject_name(name(place.name))
        .issuer_name(name(by))
        .public_key(of.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(authority, None), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )
    place.with_suffix(".crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A folder with two pairs of keys."""
    folder = tmp_path / "keys"
    folder.mkdir()
    write_key(folder / "ours")
    write_key(folder / "other")
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model with its report, and a file beside it that does not belong to it."""
    from tests.cell_model import cell_spec, write_cell_model

    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "notes.txt").write_text("notes")
    file = write_cell_model(folder / "m.onnx", spec=cell_spec(), external=True)
    parity_report_path(file).write_text("{}")
    return file


@needs_library
def test_a_signature_holds_for_a_model_and_what_belongs_to_it(model: Path, keys: Path) -> None:
    signature = sign(model, Signer(keys / "ours.pem"))
    assert signature == model.with_name("m.onnx.sig") == signature_path(model)
    ours = Verifier(keys / "ours.pub")
    names = {file.name for file in verify_signature(model, signature, ours)}
    assert names == {"m.onnx", "m.onnx.data", "m.onnx.parity.json"}
    moved = model.parent.rename(model.parent.with_name("moved"))
    verify_signature(moved / "m.onnx", moved / signature.name, ours)
    with pytest.raises(ArtefactError, match=r"is not a valid signature of .*: Key mismatch"):
        verify_signature(moved / "m.onnx", moved / signature.name, Verifier(keys / "other.pub"))
    with pytest.raises(ArtefactError, match=r"is a valid signature, but of other files than \S+notes\.txt: m\.onnx"):
        verify_signature(moved / "notes.txt", moved / signature.name, ours)


@needs_library
@pytest.mark.parametrize("name", ["m.onnx", "m.onnx.data", "m.onnx.parity.json"])
def test_a_change_of_any_signed_file_is_found(name: str, model: Path, keys: Path) -> None:
    signature = sign(model, Signer(keys / "ours.pem"))
    changed = bytearray(model.with_name(name).read_bytes())
    changed[-1] ^= 1
    model.with_name(name).write_bytes(changed)
    with pytest.raises(ArtefactError, match=f"other content than was signed: {name}$"):
        verify_signature(model, signature, Verifier(keys / "ours.pub"))
    model.with_name(name).unlink()
    with pytest.raises(DeployError):
        verify_signature(model, signature, Verifier(keys / "ours.pub"))


@needs_library
def test_every_file_of_a_folder_is_signed(model: Path, keys: Path) -> None:
    folder = model.parent
    signature = sign(folder, Signer(keys / "ours.pem"))
    assert signature == folder / "model.sig"
    assert {file.name for file in verify_signature(folder, signature, Verifier(keys / "ours.pub"))} == {
        "m.onnx", "m.onnx.data", "m.onnx.parity.json", "notes.txt",
    }  # fmt: skip
    (folder / "more").write_text("more")
    with pytest.raises(ArtefactError, match=r"Extra files found .*: more"):
        verify_signature(folder, signature, Verifier(keys / "ours.pub"))
    with pytest.raises(OutputError, match="exists: choose another path, or pass --force"):
        sign(folder, Signer(keys / "ours.pem"))
    sign(folder, Signer(keys / "ours.pem"), replace=True)
    verify_signature(folder, signature, Verifier(keys / "ours.pub"))
    (folder / "more").unlink()
    (folder / "more").symlink_to(keys / "ours.pem")
    with pytest.raises(ArtefactError, match=r"cannot be signed: .*more"):
        sign(folder, Signer(keys / "ours.pem"), replace=True)


@needs_library
def test_a_certificate_signs_and_its_authority_verifies(model: Path, keys: Path) -> None:
    authority, stranger, own = (write_key(keys / name) for name in ("authority", "stranger", "own"))
    write_certificate(keys / "authority", authority, of=authority, by="authority", authority=True)
    write_certificate(keys / "stranger", stranger, of=stranger, by="stranger", authority=True)
    write_certificate(keys / "own", authority, of=own, by="authority", authority=False)
    signer = Signer(keys / "own.pem", certificate=keys / "own.crt", chain=(keys / "authority.crt",))
    signature = sign(model, signer)
    assert len(verify_signature(model, signature, Verifier(chain=(keys / "authority.crt",)))) == 3
    with pytest.raises(ArtefactError, match="is not a valid signature"):
        verify_signature(model, signature, Verifier(chain=(keys / "stranger.crt",)))
    with pytest.raises(
        UsageError, match="these keys and certificates cannot sign: The public key from the certificate"
    ):
        sign(model, Signer(keys / "ours.pem", certificate=keys / "own.crt"), replace=True)


@needs_library
def test_the_program_of_the_library_agrees(model: Path, keys: Path) -> None:
    from click.testing import CliRunner
    from model_signing._cli import main as program

    def run(*words: object) -> int:
        return CliRunner().invoke(program, [str(word) for word in words]).exit_code

    signature = sign(model, Signer(keys / "ours.pem"))
    verify = ("verify", "key", model.parent, "--signature", signature, "--public_key", keys / "ours.pub")
    assert run(*verify, "--ignore_unsigned_files") == 0
    assert run(*verify) == 1  # notes.txt is not signed
    single = keys / "single.sig"
    assert run("sign", "key", model, "--signature", single, "--private_key", keys / "ours.pem") == 0
    assert verify_signature(model, single, Verifier(keys / "ours.pub")) == (model,)
    with pytest.raises(ArtefactError, match="other content than was signed"):
        verify_signature(model.with_name("notes.txt"), single, Verifier(keys / "ours.pub"))


@needs_library
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda keys: (keys / "ours.pub").read_bytes(), "cannot sign"),
        (lambda keys: b"no key", "cannot sign"),
    ],
)
def test_what_is_no_key_is_refused(change: Callable[[Path], bytes], said: str, model: Path, keys: Path) -> None:
    (keys / "bad.pem").write_bytes(change(keys))
    with pytest.raises(UsageError, match=said):
        sign(model, Signer(keys / "bad.pem"))
    assert not signature_path(model).exists()


@needs_library
@pytest.mark.parametrize("text", ["", "{}", "[]", '{"verificationMaterial": {}}', "\x00"])
def test_what_is_no_signature_is_refused(text: str, model: Path, keys: Path) -> None:
    (keys / "bad.sig").write_text(text)
    with pytest.raises(ArtefactError, match="is not a valid signature"):
        verify_signature(model, keys / "bad.sig", Verifier(keys / "ours.pub"))


@needs_library
def test_the_commands(
    model: Path, keys: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_key(keys / "locked", password=b"secret")
    assert main(["sign", str(model), "--private-key", str(keys / "locked.pem")]) == UsageError.exit_code
    monkeypatch.setenv("DEPLOYKIT_KEY_PASSWORD", "secret")
    assert main(["sign", str(model), "--private-key", str(keys / "locked.pem")]) == 0
    out, err = capsys.readouterr()
    assert out == f"{model}.sig\n"
    assert "Password was not given" in err
    verify = ["inspect", str(model), "--verify", "--signature", f"{model}.sig", "--public-key"]
    assert main([*verify, str(keys / "locked.pub")]) == 0  # its report names no hash, and the signature does
    assert main([*verify, str(keys / "ours.pub"), "--json"]) == ArtefactError.exit_code


class Library:
    """What stands in for the library: it notes what it is asked for."""

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}
        self.signing = self.verifying = self
        self.hashing = SimpleNamespace(Config=type("Config", (), {"set_ignored_paths": lambda self, paths: self}))

    def Config(self) -> Library:  # noqa: N802  (the library's name)
        return self

    def __getattr__(self, name: str) -> Any:
        def note(*given: object, **options: object) -> Library:
            self.asked[name] = options or given
            return self

        return note

    def sign(self, folder: Path, out: Path) -> None:
        out.write_text("signature")


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Library:
    library = Library()
    monkeypatch.setitem(sys.modules, "model_signing", library)  # type: ignore[arg-type]
    return library


def test_sigstore_is_asked_as_the_library_wants(stand_in: Library, tmp_path: Path) -> None:
    (tmp_path / "m.pt").write_text("m")
    (tmp_path / "token").write_text("abc\n")
    words = ["sign", str(tmp_path / "m.pt"), "--sigstore", "--identity-token-file", str(tmp_path / "token")]
    assert main(words) == 0
    assert (tmp_path / "m.pt.sig").read_text() == "signature"
    expected = {"identity_token": "abc", "use_ambient_credentials": False, "trust_config": None}
    assert stand_in.asked["use_sigstore_signer"] == expected
    Verifier(identity="me@example.com", provider="https://id.example.com").configured(stand_in)
    assert stand_in.asked["use_sigstore_verifier"] == {
        "identity": "me@example.com", "oidc_issuer": "https://id.example.com", "trust_config": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "name what signs: --private-key FILE, or --sigstore"),
        (("--private-key", "K", "--sigstore"), "name what signs"),
        (("--private-key", "K", "--identity-token-file", "T"), "go with --sigstore"),
        (("--sigstore", "--signing-certificate", "C"), "--signing-certificate goes with --private-key"),
        (("--private-key", "K", "--certificate-chain", "C"), "--certificate-chain goes with --signing-certificate"),
    ],
)
def test_options_of_signing_that_do_not_go_together(
    words: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.pt").write_text("m")
    assert main(["sign", str(tmp_path / "m.pt"), *words]) == UsageError.exit_code
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--public-key", "K"), "--public-key says whose signature is expected: name the signature's file"),
        (("--signature", "S", "--public-key", "K"), "--signature goes with --verify"),
        (("--verify", "--signature", "S"), "say which one is expected"),
        (("--verify", "--signature", "S", "--identity", "me"), "go together"),
    ],
)
def test_options_of_verification_that_do_not_go_together(
    words: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.pt").write_text("m")
    assert main(["inspect", str(tmp_path / "m.pt"), *words]) == UsageError.exit_code
    assert said in capsys.readouterr().err


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "model_signing", None)  # type: ignore[arg-type]
    (tmp_path / "m.pt").write_text("m")
    with pytest.raises(MissingDependencyError, match=r"pip install 'deploykit-vision\[signing\]'"):
        sign(tmp_path / "m.pt", Signer(tmp_path / "key"))
