"""Where results go: JSON files and plots."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["write"]


def write(result: dict[str, Any], folder: Path, draw: Callable[[dict[str, Any], Path], bool]) -> list[Path]:
    """One JSON file and, where there is something to draw, one plot per operator."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for op in sorted({entry["op"] for entry in result["entries"]}):
        part = result | {"op": op, "entries": [entry for entry in result["entries"] if entry["op"] == op]}
        data, picture = folder / f"{op}.json", folder / f"{op}.png"
        data.write_text(json.dumps(part, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        written.append(data)
        if draw(part, picture):
            written.append(picture)
    return written
