"""Measures the cases on a GPU: python -m benchmarks.cuda [--op NAME] [--case NAME] [--quick]"""

from __future__ import annotations

import argparse
import datetime
import re
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..cases import Case
from ..files import write
from ..report import summary_text
from . import clock, gpu
from .cases import CASES, is_quick
from .measure import FULL, QUICK, Effort, measure
from .report import case_text, draw, machine_text

__all__ = ["folder_of", "main", "run"]

RESULTS = Path(__file__).parents[1] / "results_cuda"  # a folder for each kind of GPU
UNOFFICIAL = Path("build/benchmarks_cuda")  # quick and partial runs replace no committed figures
FORMAT = 1


def run(cases: Sequence[Case], effort: Effort) -> dict[str, Any]:
    """Measures the cases, printing each as it is done. Returns what goes into the JSON files."""
    described = gpu.describe()
    print(machine_text(described))
    peak = cache(lambda dtype: clock.product_rate(getattr(torch, dtype)))
    entries = []
    with tqdm(cases, unit="case", dynamic_ncols=True, disable=None) as bar:
        for case in bar:
            bar.set_postfix_str(case.name)
            entries.append(measure(case, effort, peak))
            bar.write(case_text(entries[-1]))
            sys.stdout.flush()
    return {
        "format": FORMAT,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": described,
        "quick": not effort.complete,
        "entries": entries,
    }


def folder_of(result: dict[str, Any], folder: Path) -> Path:
    """The folder inside it that is named after the GPU."""
    return folder / re.sub(r"[^a-z0-9]+", "-", result["machine"]["gpu"].lower()).strip("-")


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cuda", description="Measure attention_ext on a GPU beside its peers."
    )
    operators = sorted({case.op for case in CASES})
    parser.add_argument("--op", choices=operators, help="only the cases of this operator")
    parser.add_argument("--case", action="append", help="only cases whose name has this part; repeatable")
    parser.add_argument("--quick", action="store_true", help="few cases, peers and repetitions: not to quote")
    parser.add_argument("--output", type=Path, help="folder of the JSON and the plots")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """0 also without a GPU, and when a requirement is missed; 1 if a result is wrong or a case failed."""
    options = arguments(argv)
    cases = [case for case in CASES if options.op in (None, case.op)]
    if options.case:
        cases = [case for case in cases if any(part in case.name for part in options.case)]
    elif options.quick:
        cases = [case for case in cases if is_quick(case)]
    if not cases:
        print(f"no case has {' or '.join(options.case)} in its name", file=sys.stderr)
        return 2
    if reason := gpu.missing():
        print(f"nothing measured, {len(cases)} cases skipped: {reason}")
        return 0
    result = run(cases, QUICK if options.quick else FULL)
    print(summary_text(result["entries"]))
    official = not (options.quick or options.case)
    folder = options.output or (RESULTS if official else UNOFFICIAL)
    for path in write(result, folder_of(result, folder), draw):
        print(f"wrote {path}")
    return int(any(entry["status"] != "measured" for entry in result["entries"]))
