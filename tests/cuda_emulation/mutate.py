"""Plants the faults of mutations*.py into copies of the kernels, one at a time: each must be noticed.

python mutate.py [part of a name]      Needs the built libraries; prints one line a fault.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from mutations import MUTATIONS, Mutation
from mutations_tensor import TENSOR_MUTATIONS
from mutations_tensor_backward import TENSOR_BACKWARD_MUTATIONS

ALL = MUTATIONS + TENSOR_MUTATIONS + TENSOR_BACKWARD_MUTATIONS
HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "cuda_emulation"


def plant(mutation: Mutation, kernels: Path) -> None:
    shutil.copytree(ROOT / "csrc" / "cuda", kernels)
    path = kernels / mutation.file
    text = path.read_text()
    if text.count(mutation.old) < mutation.occurrence:
        raise SystemExit(f"{mutation.name}: {mutation.file} does not contain {mutation.old!r}")
    parts = text.split(mutation.old)
    at = mutation.occurrence
    path.write_text(mutation.old.join(parts[:at]) + mutation.new + mutation.old.join(parts[at:]))


def run(mutation: Mutation, folder: Path) -> str:
    """What was noticed: "values", the kind of a finding, or "nothing"."""
    plant(mutation, folder / "cuda")
    mode = "plain" if mutation.noticed == "values" else "checked"
    (folder / mode).mkdir()
    for path in (BUILD / mode).glob("*.o"):
        if path.stem not in mutation.rebuilt:
            shutil.copy(path, folder / mode)
    build = [
        "make", "-s", "-C", str(HERE), "WARNINGS=-w", f"PYTHON={sys.executable}", f"OUT={BUILD}",
        f"KERNELS={folder / 'cuda'}", f"KERNEL_OUT={folder}", f"{folder}/{mode}/liboperators.so",
    ]  # fmt: skip
    subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
    code, output = run_tests(mutation, mode, folder)
    if code == 0:
        return "nothing"
    if code != 1:
        raise SystemExit(f"{mutation.name}: the tests did not run\n{output}")
    if mutation.noticed != "values":
        return mutation.noticed if f"{mutation.noticed}: " in output else "something else"
    return "values"


def run_tests(mutation: Mutation, mode: str, folder: Path) -> tuple[int, str]:
    """pytest's exit code and what it said. A fork of this process, which has imported torch already."""
    with tempfile.TemporaryFile("w+") as output:
        if (child := os.fork()) == 0:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            os.chdir(ROOT)
            os.environ["ATTENTION_EXT_EMULATION"] = mode
            os.environ["ATTENTION_EXT_EMULATION_FOLDER"] = str(folder)
            code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-k", mutation.tests, str(HERE)])
            sys.stdout.flush()
            os._exit(code)
        _, status = os.waitpid(child, 0)
        output.seek(0)
        return os.waitstatus_to_exitcode(status), output.read()


def main() -> None:
    torch.set_num_threads(1)
    wanted = [m for m in ALL if all(part in m.name for part in sys.argv[1:])]
    missed = 0
    for mutation in wanted:
        with tempfile.TemporaryDirectory() as folder:
            found = run(mutation, Path(folder))
        missed += found != mutation.noticed
        verdict = "noticed" if found == mutation.noticed else "MISSED"
        print(f"{verdict:8} {mutation.name}: expected {mutation.noticed}, found {found}", flush=True)
    print(f"{len(wanted)} faults, {missed} missed")
    sys.exit(missed != 0)


if __name__ == "__main__":
    main()
