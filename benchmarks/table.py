"""Puts the committed results into README.md: python -m benchmarks.table [--check]"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .report import (
    bytes_text,
    machine_text,
    memory_text,
    percent,
    requirement_text,
    seconds_text,
    titles_of,
    value_text,
)

__all__ = ["BEGIN", "END", "main", "replace_section", "section"]

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
HEADER = "| case | ours | peer | peer / ours | share of peak | memory, ours / peer | required |"


def section(folder: Path = RESULTS) -> str:
    """The Markdown between the two markers, of all results in the folder."""
    parts = []
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text())
        lines = [f"`{result['op']}`, {result['date']}, {machine_text(result['machine'])}.", ""]
        lines += [HEADER, "|---" * HEADER.count(" |") + "|"]
        for entry in result["entries"]:
            lines += rows(entry)
        picture = path.with_suffix(".png")
        if picture.exists():
            lines += [
                "",
                f"![Ratios and shares of the peak, {result['op']}](benchmarks/results/{picture.name})",
            ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def rows(entry: dict[str, Any]) -> list[str]:
    """A row for each peer; the requirements stand with the peer they name, or in the first row."""
    title = f"{entry['title']}, {entry['shape']}, {entry['dtype']}"
    if entry["status"] != "measured":
        return [
            row(title, f"no figure: {entry['reason']}", "", "", "", "", required(entry["requirements"], {}))
        ]
    if entry["kind"] == "scaling":
        return [scaling_row(title, entry)]
    if entry["kind"] == "memory":
        memory = bytes_text(entry["contenders"]["ours"]["memory"]["total"])
        note = f"{memory}, inputs included; the tensors are {bytes_text(entry['tensor_bytes'])}"
        return [row(title, "", "", "", "", note, required(entry["requirements"], {}))]
    mine, titles = entry["contenders"]["ours"], titles_of(entry)
    lines = []
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
        f"{figures['title']} {scaling[name]:.2f}x"
        for name, figures in entry["contenders"].items()
        if name != "ours"
    )
    control = f"FMA loop {scaling['control']:.2f}x"
    peers = "; ".join(part for part in (others, control) if part)
    return row(title, times, peers, "", "", "", required(entry["requirements"], {}))


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
        prog="python -m benchmarks.table", description="Put the results into README.md."
    )
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit 1 if README.md is out of date"
    )
    options = parser.parse_args(argv)
    readme = ROOT / "README.md"
    old = readme.read_text()
    new = replace_section(old, section())
    if options.check:
        return int(new != old)
    readme.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
