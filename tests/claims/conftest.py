"""Claims that cost nothing to run, in modules of their own."""

from __future__ import annotations

import importlib
import sys
import textwrap

import pytest

from bnlearn.claims import _ledger

THEME = """
    import os
    import numpy as np
    from bnlearn.claims import Claim, Criterion, Measurement

    RUNS = []

    def run(name, scale):
        RUNS.append(name)
        effect = np.arange(scale.seeds) + 3.0
        return {{
            "ReLU": Measurement(effect, {{"with": effect, "loss": np.full((scale.seeds, 2), np.inf)}}, {{"rate": 0.1}}),
            "formula": Measurement(np.array([0.0, 1e-16])),
        }}

    def claim(name, run=run):
        return Claim(
            id=name,
            statement=f"{{name}}: rates can be | larger.",
            sources=("P",),
            theme="Rates",
            setting="{setting}",
            criteria=(Criterion("ReLU", "ratio", 2, 1), Criterion("formula", "largest error", 1e-10, exact=True)),
            run=lambda scale: run(name, scale),
        )

    def broken(name, scale):
        raise RuntimeError(f"{{name}} is out of order")

    def gone(name, scale):
        os._exit(9)

    CLAIMS = ({claims})
"""


@pytest.fixture
def themes(tmp_path, monkeypatch):
    """Write modules of claims, and make them the whole ledger: ``themes(own="claim('B1'), claim('B2')")``."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(_ledger, "RECORDS", tmp_path / "shipped")  # which tell how long a claim takes

    def write(setting="Digits.", **modules):
        for name, claims in modules.items():
            source = textwrap.dedent(THEME.format(claims=f"{claims}," if claims else "", setting=setting))
            (tmp_path / f"{name}_theme.py").write_text(source, "utf-8")
            monkeypatch.delitem(sys.modules, f"{name}_theme", raising=False)
        importlib.invalidate_caches()
        monkeypatch.setattr(_ledger, "THEMES", tuple(f"{name}_theme" for name in modules))
        return [importlib.import_module(f"{name}_theme") for name in modules]

    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # what is written twice within a second is the same to it
    yield write
    for name in [name for name in sys.modules if name.endswith("_theme")]:
        del sys.modules[name]
