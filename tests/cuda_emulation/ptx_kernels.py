"""Whether the tests have run every kernel of the PTX: fails, and names those they have not.

PYTHONPATH=tests python tests/cuda_emulation/ptx_kernels.py      after the tests of this folder in ptx mode
"""

import re
import sys

from emulation import PTX, PTX_RUN


def main() -> None:
    if not PTX:
        print("PTX: none was made, so no kernel of it was run")
        return
    compiled = {
        f"{folder.name}/{name}"
        for folder in PTX
        for file in folder.glob("*.ptx")
        for name in re.findall(r"\.entry\s+(\w+)", file.read_text())
    }
    run = {name for file in PTX_RUN.glob("*.txt") for name in file.read_text().split()}
    if not_run := sorted(compiled - run):
        sys.exit("\n".join([f"PTX: {len(not_run)} of {len(compiled)} kernels were not run:", *not_run]))
    print(f"PTX: all {len(compiled)} kernels of {', '.join(f.name for f in PTX)} were run")


if __name__ == "__main__":
    main()
