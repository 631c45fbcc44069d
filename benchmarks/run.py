"""Measures the cases of the registry: python -m benchmarks.run [--op NAME] [--case NAME] [--quick]"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from attention_ext import _C

from . import machine
from .agreement import Disagreement
from .cases import Case
from .crossover import measure_crossover
from .effort import FULL, QUICK, Effort
from .figures import entry_of, no_entry
from .files import write
from .growth import measure_growth
from .measure import Progress, chosen_peers, measure_time, no_progress
from .memory import measure_memory
from .plot import draw
from .registry import CASES, operators
from .report import case_text, machine_text, summary_text
from .scaling import measure_scaling
from .worker import run_apart

__all__ = ["main", "measure", "run"]

RESULTS = Path(__file__).parent / "results"
UNOFFICIAL = Path("build/benchmarks")  # quick and partial runs replace no committed figures
BUSY = 0.5
FORMAT = 2


def not_here(case: Case) -> str:
    """Why the case can't be measured on this machine, or an empty string."""
    if case.capability is not None and case.capability not in _C.cpu_capabilities():
        return f"this machine has no {case.capability}"
    if case.threads > len(os.sched_getaffinity(0)):
        return f"this machine has no {case.threads} cores"
    return ""


def measure(case: Case, effort: Effort, progress: Progress = no_progress) -> dict[str, Any]:
    """The entry of one case. Wrong results and errors become an entry without figures."""
    if reason := not_here(case):
        return no_entry(case, "left out", reason)
    try:
        measured = measured_by_kind(case, effort, progress)
    except Disagreement as difference:
        return no_entry(case, "disagrees", str(difference))
    except Exception as error:
        traceback.print_exc()
        return no_entry(case, "failed", f"{type(error).__name__}: {error}")
    if measured is None:
        return no_entry(case, "left out", "this system does not tell peak memory")
    return entry_of(case, measured)


def measured_by_kind(case: Case, effort: Effort, progress: Progress) -> dict[str, Any] | None:
    if case.kind == "memory":
        progress("in a process of its own")
        memory = run_apart(measure_memory, case, "ours")
        return memory and {"contenders": {"ours": {"memory": memory}}}
    if case.kind == "crossover":
        return measure_crossover(case, effort, progress)
    if case.kind == "growth":
        return measure_growth(case, effort, progress)
    if case.kind == "scaling":
        # Threads that just ran spin for a while, and the cases of one thread would not be alone.
        progress("in a process of its own")
        return run_apart(measure_scaling, case, effort, no_progress)
    if case.capability is not None:
        progress("in a process of its own")
        measured = run_apart(measure_time, case, effort, no_progress, capability=case.capability)
    else:
        measured = measure_time(case, effort, progress)
    if effort.complete and case.memory:
        compared = {r.peer for r in case.requirements if r.figure == "memory_ratio"}
        peers = chosen_peers(case, effort).items()
        for name in ("ours", *(n for n, peer in peers if peer.quick or n in compared)):
            progress(f"memory of {name}")
            memory = run_apart(measure_memory, case, name, capability=case.capability)
            measured["contenders"][name]["memory"] = memory
    return measured


def run(cases: Sequence[Case], effort: Effort) -> dict[str, Any]:
    """Measures the cases, printing each as it is done. Returns what goes into the JSON file."""
    described, before = machine.describe(), machine.load()
    print(machine_text(described))
    if before > BUSY:
        print(f"The machine is busy (load {before:.1f}): figures will be unsteady, and worse than it can do.")
    entries = []
    with tqdm(cases, unit="case", dynamic_ncols=True, disable=None) as bar:
        for case in bar:
            entry = measure(
                case, effort, lambda stage, name=case.name: bar.set_postfix_str(f"{name}, {stage}")
            )
            entries.append(entry)
            bar.write(case_text(entry))
            sys.stdout.flush()
    return {
        "format": FORMAT,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": described,
        "load": {"before": before, "after": machine.load()},
        "quick": not effort.complete,
        "entries": entries,
    }


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run", description="Measure attention_ext beside its peers."
    )
    parser.add_argument("--op", choices=operators(), help="only the cases of this operator")
    parser.add_argument("--case", action="append", help="only this case; may be given several times")
    parser.add_argument(
        "--quick", action="store_true", help="few repetitions: to see that it works, not to quote"
    )
    parser.add_argument(
        "--output", type=Path, help="folder of the JSON and the plot; a complete run: benchmarks/results"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """0 also when a requirement is missed: it may be the machine. 1 if a result is wrong or a case failed."""
    options = arguments(argv)
    cases = [case for case in CASES if options.op in (None, case.op)]
    if options.case:
        names = {case.name for case in cases}
        if unknown := sorted(set(options.case) - names):
            print(f"no case {', '.join(unknown)}; there are: {', '.join(sorted(names))}", file=sys.stderr)
            return 2
        cases = [case for case in cases if case.name in options.case]
    official = not (options.quick or options.case)
    result = run(cases, QUICK if options.quick else FULL)
    print(summary_text(result["entries"]))
    folder = options.output or (RESULTS if official else UNOFFICIAL)
    for path in write(result, folder, draw):
        print(f"wrote {path}")
    return int(any(entry["status"] in ("disagrees", "failed") for entry in result["entries"]))


if __name__ == "__main__":
    sys.exit(main())
