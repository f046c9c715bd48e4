"""A unit of systemd: what systemd itself says of it, and the command that it runs."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploykit.cli import COMMANDS, command_parser
from deploykit.errors import UsageError
from deploykit.runtime.package.models import PackagedModel
from deploykit.runtime.package.systemd import _word, systemd_text

MODELS = [PackagedModel("best", Path("best.onnx")), PackagedModel("other", Path("my model.onnx"))]
ANALYZE = shutil.which("systemd-analyze")
EXPOSED = 20  # tenths; 1.5 is what is left where a service must be on the network


def unit(**options: Any) -> str:
    return systemd_text(MODELS, **{"executable": sys.executable, "folder": "/srv/deploykit", **options})


def settings(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


@pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("options", [{}, {"host": "0.0.0.0"}, {"device": "cuda"}], ids=["loopback", "open", "gpu"])
def test_systemd_takes_the_unit_and_finds_it_little_exposed(options: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "deploykit.service"
    file.write_text(unit(**options))
    done = subprocess.run([str(ANALYZE), "verify", str(file)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    words = ["security", "--offline=yes", f"--threshold={EXPOSED}", "--no-pager", str(file)]
    done = subprocess.run([str(ANALYZE), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    file.write_text("\n".join(line for line in unit(**options).splitlines() if not line.startswith("CapabilityB")))
    loose = subprocess.run([str(ANALYZE), *words], capture_output=True, text=True, check=False)
    assert loose.returncode != 0, "the measure tells a unit with all capabilities apart"


def test_a_service_of_this_machine_alone_has_no_token_and_reaches_nothing_else() -> None:
    found = settings(unit())
    assert found["IPAddressDeny"] == "any"
    assert "--token-file" not in found["ExecStart"]
    assert found["PrivateDevices"] == found["MemoryDenyWriteExecute"] == "yes"


def test_a_service_for_others_takes_its_tokens_as_a_credential() -> None:
    found = settings(unit(host="0.0.0.0"))
    assert found["LoadCredential"] == "token:/etc/deploykit/token"
    assert found["ExecStart"].endswith(" --token-file ${CREDENTIALS_DIRECTORY}/token")
    assert "IPAddressDeny" not in found
    assert found["Wants"] == found["After"] == "network-online.target"


def test_a_gpus_service_reaches_its_devices_and_no_others() -> None:
    found = settings(unit(device="cuda"))
    assert (found["DevicePolicy"], found["DeviceAllow"]) == ("closed", "char-nvidia* rw")
    assert "PrivateDevices" not in found


def test_the_command_names_every_model_at_its_place() -> None:
    words = shlex.split(settings(unit(given=["--max-batch", "4"]))["ExecStart"])
    assert words[:4] == [
        sys.executable, "serve", "best=/srv/deploykit/best/best.onnx", "other=/srv/deploykit/other/my model.onnx",
    ]  # fmt: skip
    assert words[4:] == ["--host", "127.0.0.1", "--port", "8000", "--max-batch", "4"]


@pytest.mark.skipif("serve" not in COMMANDS, reason="this deploykit has no server")
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_the_server_takes_the_arguments(host: str) -> None:
    words = shlex.split(settings(unit(host=host))["ExecStart"])[1:]
    args = command_parser(words).parse_args(words)
    assert args.host == host


@given(st.text(st.characters(exclude_categories=["C", "Z"], include_characters=" "), max_size=30))
def test_a_word_is_one_word_that_means_itself(text: str) -> None:
    """systemd reads quotes and backslashes as a shell does within double quotes, and halves '%' and '$'."""
    (word,) = shlex.split(_word(text))
    assert word.replace("%%", "%").replace("$$", "$") == text
    assert word.count("%") == 2 * text.count("%")
    assert word.count("$") == 2 * text.count("$")


@pytest.mark.parametrize(("options", "said"), [
    ({"executable": "deploykit"}, "a unit needs absolute paths, got deploykit"),
    ({"folder": "models"}, "a unit needs absolute paths, got models"),
    ({"folder": "/a\nExecStartPre=/bin/sh"}, "a unit cannot hold"),
])  # fmt: skip
def test_what_a_unit_cannot_hold_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        unit(**options)
