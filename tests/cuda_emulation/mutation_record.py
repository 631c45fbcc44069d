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


def state_of(mutation: Mutation) -> str:
    return digest(repr(tuple(mutation)), code(ROOT / "csrc" / "cuda" / mutation.file))


def state_of_all() -> str:
    kernels = {path for part in ("core", "cuda") for path in (ROOT / "csrc" / part).glob("*.*h")}
    kernels |= set((ROOT / "csrc" / "cuda").glob("*.cu"))
    checks = {path for end in ("cpp", "h", "py") for path in HERE.rglob(f"*.{end}")}
    checks -= set(HERE.glob("mutat*.py"))
    return digest(*map(code, sorted(kernels)), *(path.read_text() for path in sorted(checks)))


def read() -> dict:
    return json.loads(RECORD.read_text()) if RECORD.exists() else {"all": "", "faults": {}}


def write(noticed: Iterable[Mutation], missed: Iterable[Mutation], known: list[Mutation]) -> None:
    """Adds what a run has shown; one that noticed all that are known vouches for the rest too."""
    noticed, faults = list(noticed), read()["faults"]
    faults |= {mutation.name: state_of(mutation) for mutation in noticed}
    for mutation in missed:
        faults.pop(mutation.name, None)
    whole = state_of_all() if len(noticed) == len(known) else read()["all"]
    names = sorted({mutation.name for mutation in known} & set(faults))
    record = {"all": whole, "faults": {name: faults[name] for name in names}}
    RECORD.write_text(json.dumps(record, indent=1) + "\n")


def outdated(known: list[Mutation]) -> list[Mutation]:
    """Those whose file or entry is not the one it was noticed for."""
    faults = read()["faults"]
    return [mutation for mutation in known if faults.get(mutation.name) != state_of(mutation)]


def sample(known: list[Mutation]) -> list[Mutation]:
    """A few of all, if anything has changed since all were noticed."""
    state = state_of_all()
    if read()["all"] == state:
        return []
    return sorted(known, key=lambda mutation: digest(state, mutation.name))[:SAMPLE]
