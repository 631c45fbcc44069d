"""Two things people do with attention, run on this machine: `make demo`, or `python examples/demo.py`."""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
OUTPUT = HERE.parent / "demo_output"


def heading(text: str) -> None:
    print(f"\n{text}\n{'=' * len(text)}", flush=True)


def main() -> int:
    heading("1. A real model, searching a real text")
    try:
        import attention_maps
        import semantic_search
    except ModuleNotFoundError as error:
        print(f"  {error}: `make demo` installs what the demo needs")
        return 1
    encoder = semantic_search.load()
    agree = semantic_search.run(encoder)
    print("\n  what it looks at:")
    for name, seen in attention_maps.draw(encoder, OUTPUT).items():
        print(f"    {os.path.relpath(OUTPUT / name)}\n      {seen}")

    heading("2. A training step over 65,536 tokens")
    # in a process of its own, so that its memory is its own
    step = subprocess.run([sys.executable, HERE / "long_window.py"], check=False).returncode

    ok = agree and step == 0
    print(f"\n{'All checks passed.' if ok else 'A CHECK FAILED, see above.'}")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
