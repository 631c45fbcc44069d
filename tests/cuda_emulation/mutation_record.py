"""mutations_noticed.json: of every planted fault, for which sources it was noticed last.

A fault is noticed for the file that it is planted in, without comments and white space, and for its entry in
mutations_*.py. What else matters (headers, the emulator, the tests) is one state of all of it, that of the
last run of all faults: after any change of it a few faults stand for the rest, others after each change.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

from mutations import Mutation

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RECORD = HERE / "mutations_noticed.json"
SAMPLE = 6


def digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def code(path: Path) -> str:
    """A file of C++ without comments and white space."""
    return re.sub(r"//.*|\s+", "", path.read_text())


def states(known: Iterable[Mutation]) -> dict[str, str]:
    """Of each fault by name: of its entry and its file."""
    files = {mutation.file: code(ROOT / "csrc" / "cuda" / mutation.file) for mutation in known}
    return {mutation.name: digest(repr(tuple(mutation)), files[mutation.file]) for mutation in known}


def state_of_all() -> str:
    kernels = {path for part in ("core", "cuda") for path in (ROOT / "csrc" / part).glob("*.*h")}
    kernels |= set((ROOT / "csrc" / "cuda").glob("*.cu"))
    checks = {path for end in ("cpp", "h", "py") for path in HERE.rglob(f"*.{end}")}
    checks -= set(HERE.glob("mutat*.py"))
    return digest(*map(code, sorted(kernels)), *(path.read_text() for path in sorted(checks)))


def read() -> dict:
    return json.loads(RECORD.read_text()) if RECORD.exists() else {"all": "", "faults": {}}


def write(noticed: dict[str, str], missed: Iterable[str], known: list[Mutation], state: str) -> None:
    """Adds what a run has shown: by name, the states of faults that were noticed, and those that were not.
    One that noticed all that are known also vouches for the rest, whose state was this.
    """
    record = read()
    faults = record["faults"] | noticed
    kept = {mutation.name for mutation in known} & set(faults) - set(missed)
    whole = state if len(noticed) == len(known) else record["all"]
    record = {"all": whole, "faults": {name: faults[name] for name in sorted(kept)}}
    RECORD.write_text(json.dumps(record, indent=1) + "\n")


def outdated(known: list[Mutation]) -> list[Mutation]:
    """Those whose file or entry is not the one it was noticed for."""
    faults, now = read()["faults"], states(known)
    return [mutation for mutation in known if faults.get(mutation.name) != now[mutation.name]]


def shuffled(mutations: list[Mutation]) -> list[Mutation]:
    """In an order that any change changes."""
    state = state_of_all()
    return sorted(mutations, key=lambda mutation: digest(state, mutation.name))


def sample(known: list[Mutation]) -> list[Mutation]:
    """A few of all, if anything has changed since all were noticed."""
    return [] if read()["all"] == state_of_all() else shuffled(known)[:SAMPLE]
