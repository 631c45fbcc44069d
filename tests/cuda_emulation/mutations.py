"""What a planted fault is. Each mutations_*.py has the list MUTATIONS of one family of kernels."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import NamedTuple


class Mutation(NamedTuple):
    name: str
    file: str  # in csrc/cuda
    old: str
    new: str
    noticed: str  # "values", or the kind of the checks' finding
    tests: str  # of pytest -k, of the dtype that is built anew
    occurrence: int = 1
    rebuilt: tuple[str, ...] = ()  # files; all others stay as they are


class Mutations(NamedTuple):
    """What most faults of one family of kernels have in common."""

    family: str
    rebuilt: tuple[str, ...]
    tests: str

    def fault(
        self,
        name: str,
        file: str,
        old: str,
        new: str,
        noticed: str,
        tests: str | None = None,
        occurrence: int = 1,
        rebuilt: tuple[str, ...] | None = None,
    ) -> Mutation:
        """One that the check of this kind must notice, or whose values are wrong."""
        return Mutation(
            f"{self.family}: {name}",
            file,
            old,
            new,
            noticed,
            tests or self.tests,
            occurrence,
            rebuilt or self.rebuilt,
        )

    def wrong(
        self, name: str, file: str, old: str, new: str, tests: str | None = None, occurrence: int = 1
    ) -> Mutation:
        """One that only changes values."""
        return self.fault(name, file, old, new, "values", tests, occurrence)


def all_mutations() -> list[Mutation]:
    """Those of every mutations_*.py."""
    modules = sorted(path.stem for path in Path(__file__).parent.glob("mutations_*.py"))
    found = [mutation for name in modules for mutation in import_module(name).MUTATIONS]
    names = [mutation.name for mutation in found]
    assert len(set(names)) == len(names), "two faults of one name"
    return found
