"""Requirements in short, and the shapes that several files measure."""

from __future__ import annotations

from ..cases import Requirement, plain

__all__ = ["D64", "N4096", "at_most", "faster", "faster_bf16", "share"]

D64, N4096 = plain(1, 8, 2048, 64), plain(1, 8, 4096, 64)


def faster(times: float, peer: str = "sdpa", needs: str = "avx512") -> Requirement:
    return Requirement("ratio", times, peer, needs)


def faster_bf16(times: float, peer: str = "sdpa") -> Requirement:
    return faster(times, peer, needs="avx512_bf16")


def at_most(times: float, peer: str, needs: str = "avx512") -> Requirement:
    return Requirement("overhead", times, peer, needs)


def share(bound: float, needs: str = "avx512") -> Requirement:
    return Requirement("share", bound, needs=needs)
