"""Puts the committed results into README.md and results/*.md: python -m benchmarks.table [--check]"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .report import (
    bytes_text,
    crossover_text,
    growth_text,
    machine_text,
    memory_text,
    percent,
    requirement_text,
    seconds_text,
    titles_of,
    value_text,
)

__all__ = ["BEGIN", "END", "main", "page", "replace_section", "section"]

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
HEADER = "| case | ours | peer | peer / ours | share of peak | memory, ours / peer | required |"


def section(folder: Path) -> str:
    """README's Markdown between the two markers: the headline cases of all results in the folder."""
    parts = []
    for path, result in results_in(folder):
        lines = [*heading(result), "", *table_of([e for e in result["entries"] if e["headline"]]), ""]
        picture = path.with_suffix(".png")
        if picture.exists():
            lines += [
                f"![Ratios and shares of the peak, {result['op']}](benchmarks/results/{picture.name})",
                "",
            ]
        everything = f"[benchmarks/results/{path.stem}.md](benchmarks/results/{path.stem}.md)"
        lines.append(f"All {len(result['entries'])} cases: {everything}; {verdicts(result['entries'])}.")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def page(result: dict[str, Any]) -> str:
    """All cases of one operator, a table for each group."""
    lines = [f"# {result['op']}", "", *heading(result)]
    for group, entries in itertools.groupby(result["entries"], key=lambda entry: entry["group"]):
        lines += ["", f"## {group}", "", *table_of(list(entries))]
    return "\n".join(lines) + "\n"


def results_in(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    return [(path, json.loads(path.read_text())) for path in sorted(folder.glob("*.json"))]


def heading(result: dict[str, Any]) -> list[str]:
    return [f"`{result['op']}`, {result['date']}, {machine_text(result['machine'])}."]


def table_of(entries: list[dict[str, Any]]) -> list[str]:
    return [HEADER, "|---" * HEADER.count(" |") + "|", *(line for entry in entries for line in rows(entry))]


def verdicts(entries: list[dict[str, Any]]) -> str:
    """How many requirements are met, and the cases of those that are not."""
    cases: dict[str, list[str]] = {"met": [], "missed": [], "not judged": []}
    for entry in entries:
        for requirement in entry["requirements"]:
            cases[requirement["verdict"]].append(f"`{entry['name']}`")
    return "requirements: " + ", ".join(
        f"{len(names)} {verdict}"
        + (f" ({', '.join(dict.fromkeys(names))})" if verdict != "met" and names else "")
        for verdict, names in cases.items()
    )


def rows(entry: dict[str, Any]) -> list[str]:
    """A row for each peer; the requirements stand with the peer they name, or in the first row."""
    title = f"{entry['title']}, {entry['shape']}, {entry['dtype']}"
    if entry["status"] != "measured":
        return [
            row(title, f"no figure: {entry['reason']}", "", "", "", "", required(entry["requirements"], {}))
        ]
    if entry["kind"] == "scaling":
        return [scaling_row(title, entry)]
    if entry["kind"] == "crossover":
        return [row(title, crossover_text(entry), "", "", "", "", "")]
    if entry["kind"] == "growth":
        required_text = required(entry["requirements"], {})
        return [row(title, growth_text(entry["growth"]), "", "", "", "", required_text)]
    if entry["kind"] == "memory":
        memory = bytes_text(entry["contenders"]["ours"]["memory"]["total"])
        note = f"{memory}, inputs included; the tensors are {bytes_text(entry['tensor_bytes'])}"
        return [row(title, "", "", "", "", note, required(entry["requirements"], {}))]
    mine, titles = entry["contenders"]["ours"], titles_of(entry)
    lines = [
        row(title, "", f"{name} left out: {reason}", "", "", "", "")
        for name, reason in entry.get("left_out", {}).items()
    ]
    for number, (peer, ratio) in enumerate(entry["ratios"].items()):
        theirs = entry["contenders"][peer]
        wanted = [r for r in entry["requirements"] if r["peer"] == peer or (r["peer"] is None and not number)]
        memory = [memory_text(figures) for figures in (mine, theirs)]
        lines.append(
            row(
                title,
                seconds_text(mine["seconds_min"]),
                f"{theirs['title']}: {seconds_text(theirs['seconds_min'])}",
                f"{ratio['min']:.3g}",
                percent(mine["share"]) if mine["share"] >= 0.01 else "",
                " / ".join(part or "-" for part in memory) if any(memory) else "",
                required(wanted, titles),
            )
        )
    return lines


def scaling_row(title: str, entry: dict[str, Any]) -> str:
    one, two = entry["one_thread"]["ours"]["seconds_min"], entry["contenders"]["ours"]["seconds_min"]
    scaling = entry["scaling"]
    times = f"{seconds_text(one)} → {seconds_text(two)}: {scaling['ours']:.2f}x"
    others = "; ".join(
        f"{figures['title']}: {seconds_text(figures['seconds_min'])}, {scaling[name]:.2f}x"
        for name, figures in entry["contenders"].items()
        if name != "ours"
    )
    control = f"FMA loop: {scaling['control']:.2f}x"
    peers = "; ".join(part for part in (others, control) if part)
    ratio = next((f"{ratio['min']:.3g}" for ratio in entry["ratios"].values()), "")
    share = percent(entry["contenders"]["ours"]["share"])
    return row(title, times, peers, ratio, share, "", required(entry["requirements"], titles_of(entry)))


def required(requirements: list[dict[str, Any]], titles: dict[str, str]) -> str:
    texts = []
    for r in requirements:
        value = "" if r["value"] is None else f" ({value_text(r['figure'], r['value'])})"
        verdict = {"met": "met", "missed": "**missed**", "not judged": f"not judged: {r['reason']}"}[
            r["verdict"]
        ]
        texts.append(
            f"{requirement_text(r, titles)}: {verdict}{value if r['figure'] not in ('ratio',) else ''}"
        )
    return "; ".join(texts)


def row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def replace_section(text: str, content: str) -> str:
    """README's text with what stands between the markers replaced. Raises ValueError without both markers."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"README.md needs the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{content}\n{END}{after}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.table", description="Put the results into README.md and results/*.md."
    )
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit 1 if a file is out of date"
    )
    options = parser.parse_args(argv)
    readme = ROOT / "README.md"
    wanted = {path.with_suffix(".md"): page(result) for path, result in results_in(RESULTS)}
    wanted[readme] = replace_section(readme.read_text(), section(RESULTS))
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    if options.check:
        return int(bool(stale))
    for path in stale:
        path.write_text(wanted[path])
    return 0


if __name__ == "__main__":
    sys.exit(main())
