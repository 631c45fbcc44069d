"""What is measured on a GPU, as data: the cases of ../cases.py over dtypes, lengths and masks."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

from ..cases import CAUSAL, Band, Case, Requirement, Shape, plain
from ..patterns import BigBird, Documents, Grid, Longformer

__all__ = ["CASES", "LENGTHS", "QUICK_LENGTHS", "is_quick"]

LENGTHS = tuple(2**n for n in range(9, 16))
QUICK_LENGTHS = (1024, 4096, 16384)
TOKENS = 16384  # of a batch, but for longer sequences
WIDTH = 2048  # heads times columns
SHORT = {"bfloat16": "bf16", "float16": "f16"}
BACKENDS = ("sdpa_flash", "sdpa_cudnn", "sdpa_efficient", "sdpa_math", "flash_attn")
NEEDS = "generic"  # no instruction set of the CPU


def at_most(bound: float, peer: str) -> Requirement:
    return Requirement("overhead", bound, peer, needs=NEEDS)


def faster(peer: str) -> Requirement:
    return Requirement("ratio", 1.0, peer, needs=NEEDS)


def shape_of(L: int, D: int) -> Shape:
    return plain(max(1, TOKENS // L), WIDTH // D, L, D)


def dense() -> list[Case]:
    """FlashAttention-2 is SDPA's flash backend: the bounds are of its time."""
    bounds = {"forward": 1.3, "backward": 1.7}
    cases = []
    for dtype, D, passes, mask, L in product(SHORT, (64, 128), bounds, (None, CAUSAL), LENGTHS):
        name = f"{passes}-{'causal' if mask else 'dense'}-{SHORT[dtype]}-d{D}-{L}"
        required = () if mask else (at_most(bounds[passes], "sdpa_flash"),)
        # FlexAttention compiled lets go of what a second backward would need.
        peers = (*BACKENDS, "flex") if passes == "forward" else BACKENDS
        group = f"{passes}, {'causal' if mask else 'dense'}"
        cases.append(
            Case(name, shape_of(L, D), required, peers, passes=passes, mask=mask, dtype=dtype, group=group)
        )
    return cases


def grouped() -> list[Case]:
    """Eight key heads for sixteen query heads, causal."""
    shapes = [replace(shape_of(L, 128), Hkv=WIDTH // 128 // 2) for L in LENGTHS]
    return [
        Case(
            f"{passes}-grouped-{s.Lq}",
            s,
            (),
            (*BACKENDS, "flex"),
            passes=passes,
            mask=CAUSAL,
            dtype="bfloat16",
            group=f"{'forward' if passes == 'forward' else 'forward + backward'}, causal, grouped heads",
        )
        for passes in ("forward", "both")
        for s in shapes
    ]


MASKS = {
    "window": Band(1023, 0),
    "documents": Documents(2048),
    "bigbird": BigBird(128, 3),
    "longformer": Longformer(256, 64),
}


def sparse() -> list[Case]:
    masks = [(name, mask, L) for name, mask in MASKS.items() for L in (4096, 16384, 32768)]
    masks += [("neighbourhood", Grid(size, 13), size**2) for size in (64, 128)]
    cases = []
    for passes, D, (name, mask, L) in product(("forward", "both"), (64, 128), masks):
        peers = ("flex", "flash_attn", "sdpa_bool_mask")
        cases.append(
            Case(
                f"{passes}-{name}-d{D}-{L}",
                shape_of(L, D),
                (faster("flex"),),
                peers,
                passes=passes,
                mask=mask,
                dtype="bfloat16",
                group=f"{'forward' if passes == 'forward' else 'forward + backward'}, sparse",
            )
        )
    return cases


def decoding() -> list[Case]:
    """One query for each of 32 heads, eight key heads."""
    shapes = [Shape(16, 32, 8, 1, L, 128, 128) for L in LENGTHS]
    group = "one query, grouped heads"
    return [
        Case(f"decode-{s.Lk}", s, (), (*BACKENDS, "flex"), dtype="bfloat16", group=group, bound="bandwidth")
        for s in shapes
    ]


VARIANTS = {"linear_attention": ("plain", "decay"), "delta_rule": ("", "decay")}


def linear() -> list[Case]:
    cases = []
    kinds = [(op, variant) for op, own in VARIANTS.items() for variant in own]
    for (op, variant), passes, L in product(kinds, ("forward", "both"), (*QUICK_LENGTHS, 32768)):
        name = f"{passes}-{op}{'-' + variant if variant else ''}-{L}"
        group = f"{op.replace('_', ' ')}, {'forward' if passes == 'forward' else 'forward + backward'}"
        cases.append(
            Case(
                name,
                shape_of(L, 128),
                (),
                ("fla",),
                op,
                passes,
                CAUSAL,
                "bfloat16",
                "BLHD",
                variant=variant,
                group=group,
            )
        )
    return cases


CASES: tuple[Case, ...] = (*dense(), *grouped(), *sparse(), *decoding(), *linear())


def is_quick(case: Case) -> bool:
    """Whether a quick run has it: few lengths, one dtype, 128 columns."""
    s = case.shape
    return s.Lk in QUICK_LENGTHS and case.dtype == "bfloat16" and s.D == 128
