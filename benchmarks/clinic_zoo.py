"""What the audit finds in models with a seeded defect, and what it says of healthy ones.

    python benchmarks/clinic_zoo.py [--seeds 20] [--out benchmarks/clinic_zoo.json]

The models are those of ``tests/clinic/zoo``, trained anew from each seed. A defect counts as found where its rule is
among the findings, at its layer. Whatever the audit reports of a healthy model as a warning or an error is a false
alarm; an *info* is none. Findings about a defective model that are not its own defect are not judged: a defect often
has consequences (statistics that are wrong make evaluation differ from training).

Next to each share stands the Wilson score interval for 95 %. Runs are over models and seeds; those of one model with
different seeds are not independent, so the intervals are on the narrow side for models that are not in the zoo.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections import Counter, defaultdict
from importlib.util import find_spec
from math import sqrt
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import keras
import torch
from joblib import Parallel, delayed
from tqdm import tqdm

import bnlearn

ZOO = Path(__file__).parents[1] / "tests" / "clinic"


def entries(kind: str) -> tuple[Any, ...]:
    """The models of the zoo whose library is there."""
    if str(ZOO) not in sys.path:
        sys.path.append(str(ZOO))
    import zoo

    return tuple(entry for entry in getattr(zoo, kind) if not entry.needs or find_spec(entry.needs))


def judge(kind: str, index: int, seed: int) -> tuple[bool, list[str]]:
    """Whether the defect was found, and the rules of the warnings and errors."""
    torch.set_num_threads(1)
    entry = entries(kind)[index]
    case = entry.make(seed)
    report = case.audit()
    keras.backend.clear_session()
    found = (entry.code, case.layer) in {(finding.code, finding.layer) for finding in report.findings}
    return found, sorted({finding.code for finding in report.at_least("warning")})


def interval(hits: int, runs: int, z: float = 1.96) -> list[float]:
    """Wilson's, of a share."""
    middle, half = hits + z**2 / 2, z * sqrt(hits * (runs - hits) / runs + z**2 / 4)
    return [round(max(0.0, (middle - half) / (runs + z**2)), 4), round(min(1.0, (middle + half) / (runs + z**2)), 4)]


def share(hits: int, runs: int) -> dict[str, Any]:
    return {"runs": runs, "hits": hits, "share": round(hits / runs, 4), "95 %": interval(hits, runs)}


def by_key(pairs: list[tuple[str, bool]]) -> dict[str, dict[str, Any]]:
    grouped: dict[str, list[bool]] = defaultdict(list)
    for key, hit in pairs:
        grouped[key].append(hit)
    return {key: share(sum(hits), len(hits)) for key, hits in sorted(grouped.items())}


def results(seeds: int, jobs: int) -> dict[str, Any]:
    zoo = {kind: entries(kind) for kind in ("DEFECTS", "HEALTHY")}
    tasks = [(kind, i, seed) for kind, found in zoo.items() for i in range(len(found)) for seed in range(seeds)]
    judged = Parallel(jobs, return_as="generator", batch_size=4)(delayed(judge)(*task) for task in tasks)
    outcomes = list(zip(tasks, tqdm(judged, total=len(tasks), unit="model"), strict=True))
    defects = [(zoo[kind][i], seed, found) for (kind, i, seed), (found, _) in outcomes if kind == "DEFECTS"]
    healthy = [(zoo[kind][i], seed, alarms) for (kind, i, seed), (_, alarms) in outcomes if kind == "HEALTHY"]
    alarms = Counter(code for _, _, codes in healthy for code in codes)
    return {
        "defects": {
            "models": Counter(entry.framework for entry in zoo["DEFECTS"]),
            "found": share(sum(found for *_, found in defects), len(defects)),
            "by rule": by_key([(entry.code, found) for entry, _, found in defects]),
            "by framework": by_key([(entry.framework, found) for entry, _, found in defects]),
            "missed": [[entry.name, seed] for entry, seed, found in defects if not found],
        },
        "healthy": {
            "models": Counter(entry.framework for entry in zoo["HEALTHY"]),
            "with a false alarm": share(sum(bool(codes) for *_, codes in healthy), len(healthy)),
            "by rule": {code: alarms[code] for code in bnlearn.clinic.RULES},
            "by framework": by_key([(entry.framework, bool(codes)) for entry, _, codes in healthy]),
            "alarms": [[entry.name, seed, codes] for entry, seed, codes in healthy if codes],
        },
    }


def show(record: dict[str, Any]) -> None:
    found, alarmed = record["defects"]["found"], record["healthy"]["with a false alarm"]
    print(f"defects found:               {found['hits']} of {found['runs']}")
    for code, row in record["defects"]["by rule"].items():
        print(f"  {code}  {row['hits']:4} of {row['runs']:4}   false alarms: {record['healthy']['by rule'][code]}")
    print(f"healthy with a false alarm:  {alarmed['hits']} of {alarmed['runs']}")
    for name, *rest in (*record["defects"]["missed"], *record["healthy"]["alarms"]):
        print(f"  {name}", *rest)


def main() -> None:
    parser = argparse.ArgumentParser(description="What the audit finds, and its false alarms.")
    parser.add_argument("--seeds", type=int, default=20, help="trainings of each model (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).with_suffix(".json"), help="where to write the result"
    )
    arguments = parser.parse_args()
    if arguments.seeds < 1:
        parser.error(f"expected seeds >= 1, got {arguments.seeds}")

    record = {
        "what": "defects that the audit finds at their layer, and warnings or errors about healthy models",
        "command": f"python benchmarks/clinic_zoo.py --seeds {arguments.seeds}",
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} logical processors",
        "versions": {
            "bnlearn": bnlearn.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "keras": keras.__version__,
        },
        "seeds": arguments.seeds,
        **results(arguments.seeds, arguments.jobs),
    }
    show(record)
    arguments.out.write_text(json.dumps(record, indent=2) + "\n")
    print(f"written to {arguments.out.name}")


if __name__ == "__main__":
    main()
