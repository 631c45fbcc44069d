"""Results as text for a terminal."""

from __future__ import annotations

from typing import Any

__all__ = [
    "bytes_text",
    "case_text",
    "crossover_text",
    "growth_text",
    "machine_text",
    "percent",
    "requirement_text",
    "seconds_text",
    "summary_text",
    "titles_of",
    "verdict_text",
]

Entry = dict[str, Any]


def seconds_text(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def bytes_text(count: float) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def memory_text(figures: Entry) -> str:
    """What a call needs beyond its inputs; "" if not measured, or too little to tell."""
    count = (figures.get("memory") or {}).get("call", 0)
    return bytes_text(count) if count >= 2**20 else ""


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def value_text(figure: str, value: float) -> str:
    if figure in ("growth", "memory_growth"):
        return f"{value:.2f}"
    return percent(value) if figure == "share" else f"{value:.3g}x"


def requirement_text(requirement: Entry, titles: dict[str, str]) -> str:
    """The bound alone: "ratio to SDPA ≥ 1.2x"."""
    peer = titles.get(requirement["peer"], requirement["peer"])
    what = {
        "ratio": f"{peer} / ours",
        "overhead": f"ours / {peer}",
        "share": "share of peak",
        "scaling": "one thread / two",
        "memory_ratio": f"memory, {peer} / ours",
        "memory": "peak / bytes of the tensors",
        "growth": "time grows as N to the",
        "memory_growth": "memory grows as N to the",
    }[requirement["figure"]]
    sign = "≤" if requirement["at_most"] else "≥"
    return f"{what} {sign} {value_text(requirement['figure'], requirement['bound'])}"


def verdict_text(requirement: Entry, titles: dict[str, str]) -> str:
    text = requirement_text(requirement, titles)
    if requirement["verdict"] == "not judged":
        measured = (
            ""
            if requirement["value"] is None
            else f", {value_text(requirement['figure'], requirement['value'])}"
        )
        return f"{text}: not judged{measured} ({requirement['reason']})"
    verdict = {"met": "met", "missed": "MISSED"}[requirement["verdict"]]
    return f"{text}: {value_text(requirement['figure'], requirement['value'])}, {verdict}"


def titles_of(entry: Entry) -> dict[str, str]:
    return {name: figures["title"] for name, figures in entry.get("contenders", {}).items()}


def contender_text(name: str, figures: Entry, entry: Entry) -> str:
    parts = []
    if "seconds_min" in figures:
        parts.append(
            f"{seconds_text(figures['seconds_min'])} (median {seconds_text(figures['seconds_median'])})"
        )
    if "one_thread" in entry:
        one = entry["one_thread"][name]["seconds_min"]
        parts.append(f"one thread {seconds_text(one)}, scaling {entry['scaling'][name]:.2f}x")
    if figures.get("share", 0.0) >= 0.01:  # a call of no work has no rate
        unit = "GFLOP/s" if entry["bound"] == "fma" else "GB/s"
        parts.append(f"{figures['rate'] * 1e-9:.3g} {unit}, {percent(figures['share'])} of peak")
    if entry["kind"] == "memory":
        memory, size = figures["memory"], bytes_text(entry["tensor_bytes"])
        parts.append(
            f"peak {bytes_text(memory['total'])}, the tensors {size}; {seconds_text(memory['seconds'])}"
        )
    elif memory := memory_text(figures):
        parts.append(f"memory {memory}")
    if name in entry.get("ratios", {}):
        parts.append(
            f"ratio {entry['ratios'][name]['min']:.3g} (of medians {entry['ratios'][name]['median']:.3g})"
        )
    return f"    {figures['title']:<26} " + "; ".join(parts)


def crossover_text(entry: Entry) -> str:
    """From which length on ours is faster, and the times around it."""
    (peer,) = (figures["title"] for name, figures in entry["contenders"].items() if name != "ours")
    found = entry["crossover"]
    verdict = f"ours is faster from N = {found} on" if found else "ours is not faster at any length"
    times = ", ".join(
        f"N = {n}: {' to '.join(seconds_text(s) for s in taken.values())}"
        for n, taken in entry["lengths"].items()
    )
    return f"{verdict} (ours to {peer}: {times})"


def growth_text(growth: Entry) -> str:
    """Time and memory at every length, and the powers that fit them."""
    shown = {"seconds": seconds_text, "bytes": bytes_text}
    parts = []
    for name, text in shown.items():
        if name in growth:
            values = ", ".join(f"{N}: {text(value)}" for N, value in growth[name].items())
            parts.append(f"{values}; fits N to the {growth['exponents'][name]:.2f}")
    return "; ".join(parts)


def case_text(entry: Entry) -> str:
    """What one case gave, in a few lines."""
    threads = "" if entry["threads"] == 1 else f", {entry['threads']} threads"
    lines = [f"{entry['title']} [{entry['shape']} {entry['dtype']}{threads}] {entry['name']}"]
    if entry["status"] != "measured":
        return f"{lines[0]}\n    {entry['status']}, no figure: {entry['reason']}"
    if entry["kind"] == "crossover":
        return "\n".join([*lines, f"    {crossover_text(entry)}"])
    lines += [contender_text(name, figures, entry) for name, figures in entry["contenders"].items()]
    lines += [f"    {name} left out: {reason}" for name, reason in entry.get("left_out", {}).items()]
    if "growth" in entry:
        lines.append(f"    {growth_text(entry['growth'])}")
    if "scaling" in entry:
        lines.append(f"    {'FMA loop (control)':<26} scaling {entry['scaling']['control']:.2f}x")
    lines += [
        f"    -> {verdict_text(requirement, titles_of(entry))}" for requirement in entry["requirements"]
    ]
    return "\n".join(lines)


def machine_text(machine: Entry) -> str:
    gib = machine["memory_bytes"] / 2**30
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {gib:.0f} GiB, {machine['system']}; capability "
        f"{machine['capability']}; torch {machine['torch']} ({machine['torch_capability']}), "
        f"{machine['compiler']}, attention_ext {machine['attention_ext']}"
    )


def summary_text(entries: list[Entry]) -> str:
    """How many requirements are met, and every one that is not."""
    judged = [(entry, requirement) for entry in entries for requirement in entry["requirements"]]
    count = {v: sum(r["verdict"] == v for _, r in judged) for v in ("met", "missed", "not judged")}
    lines = [f"requirements: {count['met']} met, {count['missed']} missed, {count['not judged']} not judged"]
    for entry, requirement in judged:
        if requirement["verdict"] != "met":
            lines.append(f"  {entry['name']}: {verdict_text(requirement, titles_of(entry))}")
    for entry in entries:
        if entry["status"] in ("disagrees", "failed"):
            lines.append(f"  {entry['name']}: {entry['status'].upper()}, no figure: {entry['reason']}")
    return "\n".join(lines)
