"""What `import bnlearn` costs over `import numpy`, in milliseconds: `python benchmarks/import_time.py`.

Each is imported in a process of its own, in turn, so that a machine that slows down slows both. What is reported is the
difference of the medians; the spread of NumPy's own times is the noise of the machine.
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
from pathlib import Path

from tqdm import tqdm

RUNS = 21
TIMED = "import time; start = time.perf_counter(); import numpy{}; print(1e3 * (time.perf_counter() - start))"
ARMS = {"numpy": TIMED.format(""), "numpy and bnlearn.functional": TIMED.format("; import bnlearn.functional")}
RECORD = Path(__file__).with_suffix(".json")


def main() -> None:
    """Measure, print and record."""
    times: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for _ in tqdm(range(RUNS + 1), desc="imports"):
        for arm, code in ARMS.items():
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            times[arm].append(float(done.stdout))
    measured = {arm: sorted(values[1:]) for arm, values in times.items()}  # the first run fills the disk cache
    medians = {arm: statistics.median(values) for arm, values in measured.items()}
    record = {
        "command": "python benchmarks/import_time.py",
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "runs": RUNS,
        "median_ms": {arm: round(median, 1) for arm, median in medians.items()},
        "minimum_to_maximum_ms": {arm: [round(v[0], 1), round(v[-1], 1)] for arm, v in measured.items()},
        "over_numpy_ms": round(medians["numpy and bnlearn.functional"] - medians["numpy"], 1),
    }
    print(json.dumps(record, indent=2))
    RECORD.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
