"""Plants the faults of mutations_*.py into copies of the kernels, one at a time: each must be noticed.

python mutate.py [part of a name]      all, or a choice of them
python mutate.py --changed             those that mutations_noticed.json does not vouch for

Needs the built libraries, runs MAX_JOBS faults at once, prints one line each, and records what was noticed.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import mutation_record
import pytest
import torch
from mutations import Mutation, all_mutations

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "cuda_emulation"
MOST_CHANGED = 60  # that --changed runs, for `make test` to end
SECONDS = 300  # that tests of one fault may take; some faults never end


def plant(mutation: Mutation, kernels: Path) -> None:
    shutil.copytree(ROOT / "csrc" / "cuda", kernels)
    path = kernels / mutation.file
    text = path.read_text()
    if text.count(mutation.old) < mutation.occurrence:
        raise RuntimeError(f"{mutation.file} does not contain {mutation.old!r}")
    parts = text.split(mutation.old)
    at = mutation.occurrence
    path.write_text(mutation.old.join(parts[:at]) + mutation.new + mutation.old.join(parts[at:]))


def build(mutation: Mutation, mode: str, folder: Path) -> None:
    (folder / mode).mkdir()
    for path in (BUILD / mode).glob("*.o"):
        if path.stem not in mutation.rebuilt:
            shutil.copy(path, folder / mode)
    command = [
        "make", "-s", "-C", str(HERE), "WARNINGS=-w", f"PYTHON={sys.executable}", f"OUT={BUILD}",
        f"KERNELS={folder / 'cuda'}", f"KERNEL_OUT={folder}", f"{folder}/{mode}/liboperators.so",
    ]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"it does not compile\n{done.stderr}")


def run_tests(mutation: Mutation, mode: str, folder: Path) -> tuple[int, str]:
    """pytest's exit code and what it said. A fork of this process, which has imported torch already."""
    with tempfile.TemporaryFile("w+") as output:
        if (child := os.fork()) == 0:
            signal.alarm(SECONDS)
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


def found(mutation: Mutation, folder: Path) -> str:
    """What was noticed: "values", the kind of a finding, or "nothing"."""
    mode = "plain" if mutation.noticed == "values" else "checked"
    plant(mutation, folder / "cuda")
    build(mutation, mode, folder)
    code, output = run_tests(mutation, mode, folder)
    if code == 0:
        return "nothing"
    if code != 1:
        raise RuntimeError(f"the tests ended with {code}\n{output}")
    if mutation.noticed == "values" or f"{mutation.noticed}: " in output:
        return mutation.noticed
    return "something else"


def run(mutation: Mutation) -> tuple[Mutation, str]:
    with tempfile.TemporaryDirectory() as folder:
        try:
            return mutation, found(mutation, Path(folder))
        except RuntimeError as error:
            return mutation, str(error)


def chosen(arguments: list[str], known: list[Mutation]) -> list[Mutation]:
    if arguments != ["--changed"]:
        return [mutation for mutation in known if all(part in mutation.name for part in arguments)]
    outdated = mutation_record.shuffled(mutation_record.outdated(known))
    if left := outdated[MOST_CHANGED:]:
        print(f"{len(left)} more faults are planted in what has changed: `make mutate-cuda` runs all")
    sample = [mutation for mutation in mutation_record.sample(known) if mutation not in outdated]
    return outdated[:MOST_CHANGED] + sample


def main() -> None:
    known = all_mutations()
    wanted = chosen(sys.argv[1:], known)
    torch.set_num_threads(1)
    jobs = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
    # As they are now: an edit while the faults run is a change after it.
    states, state = mutation_record.states(known), mutation_record.state_of_all()
    noticed, missed = {}, []
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        for mutation, what in pool.imap_unordered(run, wanted):
            if what == mutation.noticed:
                noticed[mutation.name] = states[mutation.name]
            else:
                missed.append(mutation.name)
            verdict = "noticed" if what == mutation.noticed else "MISSED"
            print(f"{verdict:8} {mutation.name}: expected {mutation.noticed}, found {what}", flush=True)
            mutation_record.write(noticed, missed, known, state)
    print(f"{len(wanted)} faults, {len(missed)} missed")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
