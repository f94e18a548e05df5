"""Run a command as on a plainer machine: baseline instructions only, one thread (`make portable`).

Training amplifies the last bit of every sum, and another processor rounds in another order. What a notebook prints and
draws has to survive that; this is how to see whether it does, without owning another processor.
"""

from __future__ import annotations

import os
import sys

from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")


def plain_environment() -> dict[str, str]:
    """The variables that turn off what this processor has over the oldest one that is supported."""
    # NumPy warns about a feature that it was not built for or that the processor lacks, so only name the others.
    numpy_features = [feature for feature in __cpu_dispatch__ if __cpu_features__[feature]]
    return {
        "NPY_DISABLE_CPU_FEATURES": " ".join(numpy_features),
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_CBWR": "COMPATIBLE",
        "OPENBLAS_CORETYPE": "Nehalem",
        **dict.fromkeys(THREADS, "1"),
    }


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("expected a command to run, got none, e.g. portable.py python -m pytest --nbval notebooks")
    plain = plain_environment()
    print("running with", *(f"{name}={value!r}" for name, value in plain.items()), flush=True)
    os.execvpe(sys.argv[1], sys.argv[1:], {**os.environ, **plain})
