"""How much longer `import robustfusion` takes than `import torch`."""

import argparse
import statistics
import subprocess
import sys

from _record import write_record

RUNS = 15
GOAL_MS = 200.0


CODE = """
from time import perf_counter
start = perf_counter()
import torch
middle = perf_counter()
import robustfusion
print(middle - start, perf_counter() - middle)
"""


def seconds() -> list[float]:
    """Time both imports, one after the other, in a process of their own."""
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    return [float(word) for word in done.stdout.split()]


def main() -> None:
    """Record the medians."""
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    pairs = [seconds() for _ in range(RUNS)]
    bare, more = (1e3 * statistics.median(column) for column in zip(*pairs, strict=True))
    results = {
        "import torch, ms": bare,
        "import robustfusion after it, ms": more,
        "goal, ms": GOAL_MS,
        "met": more < GOAL_MS,
    }
    print(results)
    write_record("import_time", results, data="none", seeds=[])


if __name__ == "__main__":
    main()
