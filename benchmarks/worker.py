"""Runs a function in a process of its own: with memory, threads and instruction set of its own."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["run_apart"]

ROOT = Path(__file__).resolve().parents[1]


def run_apart(function: Callable[..., Any], *arguments: Any, capability: str | None = None) -> Any:
    """function(*arguments) in a new process; both must be picklable. What it raises is raised here."""
    environment = dict(os.environ)
    if capability is not None:
        environment["ATTENTION_EXT_CPU_CAPABILITY"] = capability
    command = [sys.executable, "-m", "benchmarks.worker"]
    job = pickle.dumps((function, arguments))
    done = subprocess.run(command, input=job, stdout=subprocess.PIPE, env=environment, cwd=ROOT, check=False)
    try:
        result, error = pickle.loads(done.stdout)
    except (pickle.UnpicklingError, EOFError):
        raise RuntimeError(f"{function.__name__} ended with code {done.returncode}") from None
    if error is not None:
        raise error
    return result


def main() -> None:
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what anybody prints must not get between
    function, arguments = pickle.load(sys.stdin.buffer)
    try:
        outcome = (function(*arguments), None)
    except Exception as error:
        outcome = (None, error)
    answer.write(pickle.dumps(outcome))
    answer.close()


if __name__ == "__main__":
    main()
