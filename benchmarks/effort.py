"""How long to measure."""

from dataclasses import dataclass

__all__ = ["FULL", "QUICK", "Effort"]


@dataclass(frozen=True)
class Effort:
    """A case is measured in rounds, each of which takes one sample of every contender.

    seconds: about how long the rounds of a case may take, within min_rounds and max_rounds
    sample_seconds: shortest sample; faster calls are repeated within one
    probe_seconds: shortest sample of the machine's peak, of which every round takes one
    complete: measure the peers that take long to get ready, and the peak memory of each
    """

    seconds: float
    min_rounds: int
    max_rounds: int
    sample_seconds: float
    probe_seconds: float
    complete: bool


FULL = Effort(5.0, 5, 40, 0.02, 0.02, True)
QUICK = Effort(0.5, 1, 3, 0.005, 0.01, False)
