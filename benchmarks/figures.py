"""From samples to figures, and from figures to verdicts."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from attention_ext import _C

from .baselines import CONTENDERS
from .cases import Case, Requirement

__all__ = ["describe_case", "entry_of", "judge", "no_entry"]

INSTRUCTION_SETS = ("generic", "avx2", "avx512", "avx512_bf16")


def describe_case(case: Case) -> dict[str, Any]:
    return {
        "name": case.name,
        "title": case.title,
        "op": case.op,
        "group": case.group,
        "headline": case.headline,
        "kind": case.kind,
        "shape": str(case.shape),
        "dtype": case.dtype,
        "passes": case.passes,
        "mask": None if case.mask is None else asdict(case.mask),
        "layout": case.layout,
        "threads": case.threads,
        "capability": case.capability or _C.cpu_capability(),
        "bound": case.bound,
        "flops": case.flops,
        "tensor_bytes": case.tensor_bytes,
    }


def no_entry(case: Case, status: str, reason: str) -> dict[str, Any]:
    """A case without figures. status: "left out", "disagrees" or "failed"."""
    verdicts = [
        requirement_of(r) | {"value": None, "verdict": "not judged", "reason": reason}
        for r in case.requirements
    ]
    return describe_case(case) | {"status": status, "reason": reason, "requirements": verdicts}


def entry_of(case: Case, measured: dict[str, Any]) -> dict[str, Any]:
    """Adds to what was measured: titles, rates, shares of the peak, ratios, verdicts."""
    entry = describe_case(case) | {"status": "measured"} | measured
    contenders = entry["contenders"]
    for name, figures in contenders.items():
        contender = CONTENDERS[case.op][name]
        figures["title"] = contender.title
        if "peak_rate" in measured:
            done = contender.instead(case) if contender.instead else case
            work = done.flops if done.bound == "fma" else done.tensor_bytes
            figures["rate"] = work / figures["seconds_min"]
            if name == "ours" or case.capability is None:  # a peer keeps its own instruction set
                figures["share"] = figures["rate"] / measured["peak_rate"]
    mine = contenders["ours"]
    if "seconds_min" in mine:
        entry["ratios"] = {
            name: {key: figures[f"seconds_{key}"] / mine[f"seconds_{key}"] for key in ("min", "median")}
            for name, figures in contenders.items()
            if name != "ours"
        }
    entry["requirements"] = [judge(requirement, entry) for requirement in case.requirements]
    return entry


def requirement_of(requirement: Requirement) -> dict[str, Any]:
    return {
        "figure": requirement.figure,
        "peer": requirement.peer,
        "bound": requirement.bound,
        "at_most": requirement.at_most,
    }


def value_of(requirement: Requirement, entry: dict[str, Any]) -> float | None:
    """The figure a requirement is about, from the fastest samples; None if it was not measured."""
    ratio = entry.get("ratios", {}).get(requirement.peer, {}).get("min")
    match requirement.figure:
        case "ratio":
            return ratio
        case "overhead":
            return None if ratio is None else 1.0 / ratio
        case "share":
            return entry["contenders"]["ours"].get("share")
        case "scaling":
            return entry["scaling"]["ours"]
        case "memory_ratio":
            calls = [
                (entry["contenders"].get(name, {}).get("memory") or {}).get("call")
                for name in (requirement.peer, "ours")
            ]
            return None if None in calls else calls[0] / calls[1]
        case "growth":
            return entry["growth"]["exponents"]["seconds"]
        case "memory_growth":
            return entry["growth"]["exponents"].get("bytes")
        case "memory":
            return entry["contenders"]["ours"]["memory"]["total"] / entry["tensor_bytes"]


def judge(requirement: Requirement, entry: dict[str, Any]) -> dict[str, Any]:
    value = value_of(requirement, entry)
    judged = requirement_of(requirement) | {"value": value, "reason": ""}
    control = entry.get("scaling", {}).get("control")
    if value is None:
        reason = entry.get("left_out", {}).get(requirement.peer, "not measured")
        judged |= {"verdict": "not judged", "reason": reason}
    elif not has(entry["capability"], requirement.needs):
        judged |= {"verdict": "not judged", "reason": f"the bound is for {requirement.needs}"}
    elif requirement.control is not None and control < requirement.control:
        reason = f"the FMA control scaled by {control:.2f} only, {requirement.control} is needed to judge"
        judged |= {"verdict": "not judged", "reason": reason}
    else:
        met = value <= requirement.bound if requirement.at_most else value >= requirement.bound
        judged["verdict"] = "met" if met else "missed"
    return judged


def has(capability: str, needed: str) -> bool:
    if needed == "generic":
        return True
    known = capability in INSTRUCTION_SETS
    return known and INSTRUCTION_SETS.index(capability) >= INSTRUCTION_SETS.index(needed)
