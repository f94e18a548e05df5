"""An arm at its best point."""

from __future__ import annotations

import numpy as np
import pytest

from bnlearn.claims import Scale
from bnlearn.claims import _two_stages as module
from bnlearn.lab import MLP, Arm, BatchNorm, Outcome, Sweep, run

ARM = Arm("arm", MLP((64, 16, 10), BatchNorm()), knobs=(("momentum", 0.5),))


def test_what_is_reported_is_every_seed_at_the_chosen_point():
    values, point = module.tuned(ARM, {"lr": (1e-5, 0.1, 1e-4)}, Scale(4), steps=15, batch_size=32, tuning=2)
    assert point == {"lr": 0.1}
    whole = run(Sweep((ARM,), {"lr": (0.1,)}, (0, 1, 2, 3), 15, 32, module.PROBES))["arm"]
    assert values == pytest.approx(whole["test"][0, :, -1], abs=0.004)
    assert values.dtype == np.float64


@pytest.mark.parametrize(("quick", "tuning", "rates"), [(True, 1, [1.0, 3.0]), (False, 2, [1.0, 2.0, 3.0])])
def test_the_point_is_chosen_by_the_validation_part_with_some_seeds(monkeypatch, quick, tuning, rates):
    calls = []

    def fake(sweep):
        calls.append(sweep)
        points = tuple(dict(point) for point in sweep.points)
        rate = np.array([point.get("lr", 7.0) for point in points])
        shape = (len(points), len(sweep.seeds), 1)
        test = np.broadcast_to(10 * rate[:, None] + np.array(sweep.seeds), shape[:2]).reshape(shape)
        return {"arm": Outcome(points, sweep.seeds, {"test": test, "validation": -test})}

    monkeypatch.setattr(module, "run", fake)
    scale = Scale(5, quick=quick)
    values, point = module.tuned(ARM, {"lr": (1.0, 2.0, 3.0)}, scale, steps=9, batch_size=32, tuning=2)
    first, second = calls
    assert point == {"lr": 1.0}  # the worst of the test part
    assert [knob for ((_, knob),) in first.points] == rates
    assert first.seeds == tuple(range(tuning))
    assert second.seeds == tuple(range(tuning, 5))
    assert second.arms[0].knobs == (("momentum", 0.5), ("lr", 1.0))
    assert values.tolist() == [10 + seed if seed < tuning else 70 + seed for seed in range(5)]
