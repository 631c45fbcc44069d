"""One picture of an operator's results: ratios to the peers, and the share of the machine's peak."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["draw"]

Row = tuple[str, float, float | None, str]  # label, value, required, colour
OURS, THEIRS, BOUND = "#1f5fa8", "#b9c2cc", "#c0392b"


def draw(result: dict[str, Any], path: Path) -> bool:
    """Writes a PNG of the headline cases; False if nothing of them can be drawn."""
    entries = [
        e for e in result["entries"] if e["headline"] and e["status"] == "measured" and e["kind"] == "time"
    ]
    ratios = [row for entry in entries for row in ratio_rows(entry)]
    shares = [row for entry in entries for row in share_rows(entry)]
    if not ratios and not shares:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    rows = max(len(ratios), len(shares))
    figure = Figure(figsize=(15, 1.6 + 0.34 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    left.set_xscale("log")
    bars(left, ratios, start=1.0)
    left.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    left.xaxis.set_major_formatter("{x:g}")
    left.xaxis.set_minor_formatter(NullFormatter())
    left.axvline(1.0, color="black", linewidth=0.8)
    left.set_xlabel("time of the peer / ours, one thread (log scale)")
    bars(right, shares)
    right.set_xlim(0, 100)
    right.set_xlabel("% of the machine's own peak, measured in between")
    note = "quick run, not to be quoted; " if result["quick"] else ""
    machine = result["machine"]
    figure.suptitle(
        f"attention_ext: {result['op']}\n{note}{machine['cpu']}, {machine['capability']}, "
        f"torch {machine['torch']}, {result['date']}; red: required",
        fontsize=10,
    )
    figure.savefig(path, dpi=110)
    return True


def label(entry: dict[str, Any]) -> str:
    dtype = "" if entry["dtype"] == "float32" else f" {entry['dtype']}"
    return f"{entry['title']}, {entry['shape']}{dtype}"


def ratio_rows(entry: dict[str, Any]) -> list[Row]:
    bounds = {}
    for requirement in entry["requirements"]:
        if requirement["figure"] == "ratio":
            bounds[requirement["peer"]] = requirement["bound"]
        elif requirement["figure"] == "overhead":
            bounds[requirement["peer"]] = 1.0 / requirement["bound"]
    return [
        (f"{label(entry)}\n{entry['contenders'][peer]['title']}", ratio["min"], bounds.get(peer), OURS)
        for peer, ratio in entry["ratios"].items()
    ]


def share_rows(entry: dict[str, Any]) -> list[Row]:
    bounds = [100 * r["bound"] for r in entry["requirements"] if r["figure"] == "share"]
    rows = []
    for name, figures in entry["contenders"].items():
        if figures.get("share", 0.0) >= 0.01:  # a call of no work has no share
            mine = name == "ours"
            text = label(entry) if mine else figures["title"]
            bound = bounds[0] if mine and bounds else None
            rows.append((text, 100 * figures["share"], bound, OURS if mine else THEIRS))
    return rows


def bars(axes: Any, rows: list[Row], start: float = 0.0) -> None:
    places = [-i for i in range(len(rows))]
    axes.barh(
        places, [row[1] - start for row in rows], left=start, color=[row[3] for row in rows], height=0.7
    )
    axes.set_yticks(places, [row[0] for row in rows], fontsize=7)
    for place, (_, value, bound, _) in zip(places, rows, strict=True):
        axes.annotate(f" {value:.3g}", (max(value, start), place), va="center", fontsize=7)
        if bound is not None:
            axes.plot([bound, bound], [place - 0.42, place + 0.42], color=BOUND, linewidth=2)
    axes.spines[["top", "right"]].set_visible(False)
