"""Results of the GPU as text and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..report import bytes_text, percent, seconds_text, titles_of, verdict_text

__all__ = ["case_text", "draw", "machine_text"]

Entry = dict[str, Any]


def machine_text(machine: Entry) -> str:
    gpu = f"{machine['gpu']} (sm {machine['compute_capability']}), {bytes_text(machine['memory_bytes'])}"
    return (
        f"{gpu}, driver {machine['driver']}; torch {machine['torch']}, attention_ext "
        f"{machine['attention_ext']}, {machine['kernels']}"
    )


def case_text(entry: Entry) -> str:
    """What one case gave, in a few lines."""
    lines = [f"{entry['title']} [{entry['shape']} {entry['dtype']}] {entry['name']}"]
    if entry["status"] != "measured":
        return f"{lines[0]}\n    {entry['status']}, no figure: {entry['reason']}"
    lines += [contender_text(name, figures, entry) for name, figures in entry["contenders"].items()]
    lines += [f"    {name} left out: {reason}" for name, reason in entry["left_out"].items()]
    lines += [f"    -> {verdict_text(r, titles_of(entry))}" for r in entry["requirements"]]
    return "\n".join(lines)


def contender_text(name: str, figures: Entry, entry: Entry) -> str:
    parts = [f"{seconds_text(figures['seconds_min'])} (median {seconds_text(figures['seconds_median'])})"]
    if entry["bound"] == "fma":
        parts.append(f"{figures['rate'] * 1e-12:.3g} TFLOP/s, {percent(figures['share'])} of torch.mm")
    else:
        parts.append(f"{figures['rate'] * 1e-9:.3g} GB/s")
    parts.append(f"memory {bytes_text(figures['memory']['call'])}")
    if name != "ours":
        parts.append(f"ratio {entry['ratios'][name]['min']:.3g}")
    return f"    {figures['title']:<26} " + "; ".join(parts)


def draw(result: Entry, path: Path) -> bool:
    """Writes a PNG: for each kind of work a panel, everyone's rate over the length; False without any."""
    panels: dict[str, list[Entry]] = {}
    for entry in result["entries"]:
        if entry["status"] == "measured":
            panels.setdefault(panel_of(entry), []).append(entry)
    if not panels:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.6 * columns, 0.8 + 3.2 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, (title, entries) in zip(grid, panels.items(), strict=False):
        draw_panel(axes, title, entries)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    note = "quick run, not to be quoted; " if result["quick"] else ""
    machine = result["machine"]
    figure.suptitle(
        f"attention_ext: {result['op']}\n{note}{machine['gpu']}, torch {machine['torch']}, {result['date']}",
        fontsize=10,
    )
    figure.savefig(path, dpi=110)
    return True


def panel_of(entry: Entry) -> str:
    """What all of a panel share: everything but the length."""
    columns = entry["shape"].split(" ")[-1]
    return f"{entry['group']}, {entry['title']}, {columns}, {entry['dtype']}"


def draw_panel(axes: Any, title: str, entries: list[Entry]) -> None:
    scale, unit = (1e-12, "TFLOP/s") if entries[0]["bound"] == "fma" else (1e-9, "GB/s")
    for name in dict.fromkeys(name for entry in entries for name in entry["contenders"]):
        having = [entry for entry in entries if name in entry["contenders"]]
        lengths = [max(entry["lengths"]) for entry in having]
        rates = [scale * entry["contenders"][name]["rate"] for entry in having]
        label, width = having[0]["contenders"][name]["title"], 2.5 if name == "ours" else 1.2
        axes.plot(lengths, rates, marker="o", markersize=3, linewidth=width, label=label)
    axes.set_xscale("log", base=2)
    axes.set_ylim(bottom=0)
    axes.set_title(title, fontsize=7)
    axes.set_ylabel(unit, fontsize=7)
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=6)
    axes.spines[["top", "right"]].set_visible(False)
