"""A unit of systemd that runs the server with as few rights as it needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from deploykit.errors import UsageError
from deploykit.runtime.package.models import PackagedModel
from deploykit.runtime.package.server import PORT, model_places
from deploykit.runtime.serve.core.options import is_loopback
from deploykit.version import DOCS_URL

__all__ = ["systemd_text"]

HARDENED = {
    "DynamicUser": "yes",
    "UMask": "0077",
    "NoNewPrivileges": "yes",
    "CapabilityBoundingSet": "",
    "AmbientCapabilities": "",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "ProtectProc": "invisible",
    "ProtectClock": "yes",
    "ProtectControlGroups": "yes",
    "ProtectHostname": "yes",
    "ProtectKernelLogs": "yes",
    "ProtectKernelModules": "yes",
    "ProtectKernelTunables": "yes",
    "PrivateMounts": "yes",
    "PrivateTmp": "yes",
    "PrivateUsers": "yes",
    "RemoveIPC": "yes",
    "KeyringMode": "private",
    "LockPersonality": "yes",
    "RestrictAddressFamilies": "AF_INET AF_INET6 AF_UNIX",
    "RestrictNamespaces": "yes",
    "RestrictRealtime": "yes",
    "RestrictSUIDSGID": "yes",
    "SystemCallArchitectures": "native",
    "SystemCallErrorNumber": "EPERM",
    "SystemCallFilter": "@system-service\nSystemCallFilter=~@privileged",  # the second takes some from the first
}
ON_CPU = {"PrivateDevices": "yes", "MemoryDenyWriteExecute": "yes"}
ON_GPU = {
    "DevicePolicy": "closed",
    "DeviceAllow": "char-nvidia* rw",
}
"""A driver of NVIDIA needs its devices, and memory that is written and run."""
TOKENS = "/etc/deploykit/token"


def systemd_text(
    models: Sequence[PackagedModel],
    *,
    executable: str,
    folder: str,
    host: str = "127.0.0.1",
    device: str | None = None,
    given: Sequence[str] = (),
) -> str:
    """Return the text of a service's unit.

    Args:
        models: the models.
        executable: the program ``deploykit`` on that machine.
        folder: the folder there in which each model lies in a folder of its name.
        host: the address to listen on; any but a loopback one needs the tokens of a file.
        device: ``cuda`` lets the service at NVIDIA's devices.
        given: further arguments of ``deploykit serve``.

    Raises:
        UsageError: a path is not absolute, or an argument is not possible in a unit.
    """
    for path in (executable, folder):
        if not path.startswith("/"):
            raise UsageError(f"a unit needs absolute paths, got {path}")
    names = ", ".join(model.name for model in models)
    open_to_others = not is_loopback(host)
    words = [
        executable, "serve", *(f"{name}={place}" for name, place in model_places(models, folder).items()),
        "--host", host, "--port", str(PORT), *given,
    ]  # fmt: skip
    command = " ".join(map(_word, words))
    service: dict[str, str] = {"Type": "exec", "ExecStart": command, "ExecReload": "/bin/kill -HUP $MAINPID"}
    if open_to_others:
        service["ExecStart"] += " --token-file ${CREDENTIALS_DIRECTORY}/token"
        service["LoadCredential"] = f"token:{TOKENS}"
    service |= {
        "Environment": "HOME=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1",
        "Restart": "on-failure",
        "RestartSec": "2",
        "TimeoutStopSec": "45",
        "SuccessExitStatus": "143",
        **HARDENED,
        **(ON_GPU if device == "cuda" else ON_CPU),
    }
    if not open_to_others:
        service |= {"IPAddressAllow": "localhost", "IPAddressDeny": "any"}
    target = "network-online.target" if open_to_others else "network.target"
    wanted = {"Wants": target} if open_to_others else {}
    sections = {
        "Unit": {"Description": f"deploykit serves {names}", "Documentation": DOCS_URL, "After": target, **wanted},
        "Service": service,
        "Install": {"WantedBy": "multi-user.target"},
    }
    return "\n".join(f"[{title}]\n{_lines(values)}" for title, values in sections.items())


def _lines(values: Mapping[str, str]) -> str:
    return "".join(f"{name}={value}\n" for name, value in values.items())


def _word(text: str) -> str:
    """Return a word of a command line as systemd reads it: specifiers and variables are doubled, blanks quoted.

    Raises:
        UsageError: it holds a control character.
    """
    if not text.isprintable():
        raise UsageError(f"a unit cannot hold {text!r}")
    found = text.replace("\\", "\\\\").replace("%", "%%").replace("$", "$$").replace('"', '\\"')
    return f'"{found}"' if any(character in found for character in " '\";\\") or not found else found
