"""Torch in a process that was forked from one that has computed with it: it does not wait for threads that are gone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.narrow import few_layers, write_checkpoint

FORK = """
import os, signal, sys
import numpy, torch
import deploykit
image = numpy.random.default_rng(0).integers(0, 256, (320, 320, 3), numpy.uint8)
model = deploykit.load(sys.argv[1], threads=2)
torch.ones(4000, 4000).exp()  # which all threads of torch take a part of
expected = model(image).boxes.tobytes()
child = os.fork()
if not child:
    signal.alarm(40)
    assert model(image).boxes.tobytes() == expected
    with deploykit.load(sys.argv[1], threads=2) as own:
        assert own(image).boxes.tobytes() == expected
    torch.ones(4000, 4000).exp()
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_computes_with_one_thread(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "few.pt", few_layers(num_keypoints=3))
    environment = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS",)}
    words = [sys.executable, "-W", "ignore", "-c", FORK, str(checkpoint)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
