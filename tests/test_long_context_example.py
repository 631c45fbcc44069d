"""examples/long_context.py in its quick mode, as a user runs it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.once, pytest.mark.cpu_only("a process on the CPU")]

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("softmax", "sliding window", "linear", "retention", "gated delta")


def test_quick_mode(tmp_path):
    picture = tmp_path / "long_context.png"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, ROOT / "examples" / "long_context.py", "--quick", "--output", picture]
    result = subprocess.run(
        command, capture_output=True, text=True, env=environment, check=False, timeout=1200
    )
    assert result.returncode == 0, result.stdout + result.stderr
    rows = [line.split() for line in result.stdout.splitlines() if line.rstrip().endswith(" x")]
    assert [" ".join(row[: len(kind.split())]) for row, kind in zip(rows, KINDS, strict=True)] == [*KINDS]
    assert result.stdout.count("(within the allowed 1e-04)") == 3
    assert picture.read_bytes().startswith(b"\x89PNG")
