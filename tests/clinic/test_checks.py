"""Every rule on facts made by hand: what it flags, and what stands just on the other side of its threshold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bnlearn.clinic import RULES, Finding
from bnlearn.clinic._audit import examine
from bnlearn.clinic._checks import CHECKS
from bnlearn.clinic._facts import OptimizerFacts, OutputFacts

NAN = float("nan")
SOUND = OutputFacts(gap=0.21, recalibrated_gap=0.2, moved=0.1, samples=32)


def told(facts, code) -> list[Finding]:
    """What one rule finds, with everything there that any rule needs."""
    whole = replace(facts, data_run=True, masked=True, optimizer=facts.optimizer or {}, output=facts.output or SOUND)
    return list(CHECKS[code](whole))


def layers(facts, code) -> list[tuple[str, str]]:
    return [(one.layer, one.severity) for one in told(facts, code)]


def test_every_rule_has_a_check_and_each_is_its_own():
    assert list(CHECKS) == sorted(RULES)
    assert len(set(CHECKS.values())) == len(RULES)


def test_a_healthy_layer_passes_every_rule(facts, layer):
    held = layer(name="held", training_now=False, trains=False, affine_trainable=False, held=True)
    plain = layer(name="plain", gamma=None, beta=None, affine_trainable=None)
    optimizer = {"bn": OptimizerFacts(holds=True, decay=0.0), "held": OptimizerFacts(holds=False, decay=0.0)}
    healthy = facts(layer(), held, plain, optimizer=optimizer, data_run=True, masked=True, output=SOUND)
    report = examine(healthy)
    assert report.findings == ()
    assert report.skipped == {}


@pytest.mark.parametrize(
    ("statistic", "value", "said"),
    [
        ("running_mean", NAN, "1 have a running mean and 0 a running variance that is not finite, and 0 a negative"),
        ("running_var", np.inf, "0 have a running mean and 1 a running variance that is not finite, and 0 a negative"),
        ("running_var", -0.1, "0 have a running mean and 0 a running variance that is not finite, and 1 a negative"),
    ],
)
def test_bn101(facts, layer, statistic, value, said):
    broken = getattr(layer(), statistic).copy()
    broken[3] = value
    (finding,) = told(facts(layer(**{statistic: broken})), "BN101")
    assert finding.evidence.startswith(f"Of 8 channels, {said}")
    assert finding.severity == "error"
    assert "bnlearn.recalibrate(model, data)" in finding.fix


def test_bn101_without_statistics(facts, layer):
    assert told(facts(layer(running_mean=None, running_var=None)), "BN101") == []


def test_bn102_after_training(facts, layer, fresh):
    (finding,) = told(facts(layer(), fresh(name="head")), "BN102")
    assert (finding.layer, finding.severity) == ("head", "error")
    assert "gamma and beta have been trained or loaded" in finding.evidence
    assert finding.fix.startswith("Copy the whole state_dict(), buffers too; if")
    (finding,) = told(facts(fresh(batches_seen=None), framework="keras"), "BN102")
    assert finding.severity == "error"
    assert finding.fix.startswith("Copy the whole get_weights(), moving statistics too; if")


AS_MADE = {"gamma": np.ones(8), "beta": np.zeros(8)}


@pytest.mark.parametrize(
    "affine",
    [
        AS_MADE,
        {"gamma": np.linspace(0.9, 1.1, 8), "beta": np.zeros(8)},  # drawn at random, as in DCGAN
        {"gamma": np.zeros(8), "beta": None},
        {"gamma": None, "beta": None},
    ],
    ids=["usual", "random gamma", "zero gamma", "none"],
)
def test_bn102_of_a_new_model_is_no_more_than_a_remark(facts, fresh, affine):
    model = facts(fresh(**affine), fresh(name="other", **affine))
    assert layers(model, "BN102") == [("", "info")]
    assert "Each layer (2 in all) has mean 0" in told(model, "BN102")[0].evidence
    assert layers(replace(model, training_now=False), "BN102") == [("bn", "error"), ("other", "error")]
    assert layers(replace(model, training_now=False, framework="keras"), "BN102") == [("", "info")]


def test_bn102_a_gamma_that_varies_without_beta_was_trained(facts, fresh):
    assert layers(facts(fresh(gamma=np.linspace(0.9, 1.1, 8), beta=None)), "BN102") == [("bn", "error")]


def test_bn102_of_a_new_head_on_an_old_backbone(facts, layer, fresh):
    (finding,) = told(facts(layer(), fresh(name="head", **AS_MADE)), "BN102")
    assert (finding.layer, finding.severity) == ("head", "info")
    assert finding.evidence.endswith("and so are gamma and beta.")


def test_bn102_leaves_the_others_alone(facts, layer, fresh):
    moved = layer(running_mean=np.zeros(8), running_var=np.full(8, 1.1), batches_seen=0)
    counted = fresh(name="counted", batches_seen=3)
    off = layer(name="off", running_mean=None, running_var=None)
    unused = fresh(name="unused", seen=None)  # BN302 says so
    assert told(facts(moved, counted, off, unused), "BN102") == []
    assert told(facts(off), "BN102") == []


def test_bn103(facts, layer):
    (finding,) = told(facts(layer(momentum=0.0)), "BN103")
    assert (finding.evidence[:10], finding.fix, finding.severity) == ("momentum=0", "Set momentum=0.1.", "warning")
    (finding,) = told(facts(layer(momentum=0.0), framework="keras"), "BN103")
    assert (finding.evidence[:10], finding.fix) == ("momentum=1", "Set momentum=0.99.")
    for harmless in (layer(momentum=1e-4), layer(momentum=None), layer(momentum=0.0, trains=False)):
        assert told(facts(harmless), "BN103") == []
    for off in ({"momentum": 0.0}, {"updates": False}):
        assert told(facts(layer(**off, running_mean=None, running_var=None)), "BN103") == []
        (finding,) = told(facts(layer(**off, affine_trainable=False)), "BN103")
        assert finding.fix == "Freeze all of it: bnlearn.freeze(model)."


def test_bn103_switched_off_later(facts, layer):
    (finding,) = told(facts(layer(updates=False)), "BN103")
    assert finding.evidence.startswith("track_running_stats=False was set later")
    assert finding.fix == "Set track_running_stats=True."
    assert told(facts(layer(updates=False, trains=False)), "BN103") == []


@pytest.mark.parametrize(
    ("framework", "share", "said"),
    [
        (
            "torch",
            0.99,
            "momentum=0.99 gives the new batch a share of 0.99; in Keras the same number would give it 0.01.",
        ),
        ("torch", 0.5, "momentum=0.5 gives the new batch a share of 0.5; in Keras the same number would give it 0.5."),
        (
            "keras",
            0.9,
            "momentum=0.1 gives the new batch a share of 0.9; in PyTorch the same number would give it 0.1.",
        ),
        ("keras", 0.5, None),
        ("torch", 0.49, None),
        ("torch", None, None),
    ],
)
def test_bn104(facts, layer, framework, share, said):
    findings = told(facts(layer(momentum=share), framework=framework), "BN104")
    assert [one.evidence for one in findings] == ([] if said is None else [said])
    if said is not None:
        assert findings[0].fix == ("Set momentum=0.9." if framework == "keras" else f"Set momentum={1 - share:.3g}.")
        assert told(facts(layer(momentum=share, trains=False), framework=framework), "BN104") == []


def test_bn105(facts, layer, seen, fresh):
    var = np.full(8, 0.9e-5)
    (finding,) = told(facts(layer(eps=1e-3, seen=seen(var=var))), "BN105")
    assert "below 1e-05 in 8 of 8 live channels, with eps=0.001" in finding.evidence
    assert "about 0.0944" in finding.evidence
    assert finding.severity == "warning"
    assert told(facts(layer(eps=1e-3, seen=seen(var=var * 1.2))), "BN105") == []
    half = np.where(np.arange(8) < 4, 0.9e-5, 1.0)
    assert told(facts(layer(eps=1e-3, seen=seen(var=half))), "BN105") == []
    silent = np.where(np.arange(8) < 3, 0.9e-5, 0.0)  # dead channels do not vote
    (finding,) = told(facts(layer(eps=1e-3, seen=seen(var=silent))), "BN105")
    assert "3 of 3 live" in finding.evidence
    assert told(facts(layer(eps=1e-3, seen=seen(var=np.zeros(8)))), "BN105") == []
    assert len(told(facts(layer(eps=1e-3, seen=None, running_mean=np.zeros(8), running_var=var)), "BN105")) == 1
    for unknown in ({"seen": seen(finite=False)}, {"seen": None, "running_var": np.full(8, -1.0)}):
        assert told(facts(layer(eps=1e3, **unknown)), "BN105") == []
    assert told(facts(fresh(eps=1e3, seen=None)), "BN105") == []


@pytest.mark.parametrize("dtype", ["float16", "torch.bfloat16"])
def test_bn106(facts, layer, dtype):
    (finding,) = told(facts(layer(dtype=dtype)), "BN106")
    assert finding.evidence == f"The running statistics are kept in {dtype.removeprefix('torch.')}."
    assert "layer.float()" in finding.fix
    assert "mixed_float16" in told(facts(layer(dtype=dtype), framework="keras"), "BN106")[0].fix
    assert told(facts(layer(dtype=dtype, running_mean=None, running_var=None)), "BN106") == []
    assert told(facts(layer(dtype="float64")), "BN106") == []


def test_bn107(facts, layer, seen):
    biased = layer(seen=seen(bias_from="stem.conv"))
    (finding,) = told(facts(biased), "BN107")
    assert (finding.severity, finding.fix) == ("info", "Make layer stem.conv with bias=False.")
    assert told(facts(biased, framework="keras"), "BN107")[0].fix == "Make layer stem.conv with use_bias=False."
    assert told(facts(replace(biased, trains=False), layer(), layer(seen=None)), "BN107") == []


def test_bn108(facts, layer):
    gamma, beta = layer().gamma.copy(), layer().beta.copy()
    gamma[:2], beta[0] = np.inf, NAN
    (finding,) = told(facts(layer(gamma=gamma, beta=beta), layer(gamma=None)), "BN108")
    assert finding.evidence == "Not finite, of 8 channels: 2 of gamma, 1 of beta."
    (finding,) = told(facts(layer(gamma=None, beta=beta)), "BN108")
    assert finding.evidence == "Not finite, of 8 channels: 1 of beta."


def test_bn201(facts, layer):
    half = layer(affine_trainable=False)
    assert layers(facts(half), "BN201") == [("bn", "warning")]
    used = replace(half, training_now=False)
    assert told(facts(used, training_now=False), "BN201") == []  # a model that is only used
    learning = layer(name="head", training_now=False)
    assert layers(facts(used, learning, training_now=False), "BN201") == [("bn", "warning")]
    assert told(facts(used), "BN201") == []  # set to evaluation by hand: BN202
    for sound in ({"trains": False}, {"running_mean": None, "running_var": None}, {"affine_trainable": None}):
        assert told(facts(replace(half, **sound)), "BN201") == []
    for still in ({"momentum": 0.0}, {"updates": False}):  # BN103
        assert told(facts(replace(half, **still)), "BN201") == []


def test_bn202_batch_statistics_in_evaluation(facts, layer):
    model = facts(layer(), layer(name="other", training_now=False), training_now=False)
    assert layers(model, "BN202") == [("bn", "warning")]
    assert "model.eval()" in told(model, "BN202")[0].fix
    assert told(facts(layer(evaluates=False), training_now=False), "BN202") == []  # BN301


def test_bn202_frozen_until_the_next_train(facts, layer):
    by_hand = layer(name="stem", training_now=False, frozen_by_hand=True)
    (finding,) = told(facts(by_hand, layer(), layer(name="head")), "BN202")
    assert finding.layer == "stem"
    assert "beside 2 in training mode" in finding.evidence
    assert told(facts(by_hand), "BN202") == []  # all of them: a loop that does so in every epoch


def test_bn203(facts, layer, seen):
    (finding,) = told(facts(layer(), distributed=True), "BN203")
    assert (finding.severity, "of 32 values" in finding.evidence) == ("info", True)
    (finding,) = told(facts(layer(seen=seen(fewest=15)), distributed=True), "BN203")
    assert (finding.severity, 'replace(model, "sync")' in finding.fix) == ("warning", True)
    assert layers(facts(layer(seen=seen(fewest=16)), distributed=True), "BN203") == [("bn", "info")]
    assert told(facts(layer(seen=None), distributed=True), "BN203")[0].evidence.endswith("part of the batch.")
    for sound in (facts(), facts(layer(kind="SyncBatchNorm"), layer(trains=False), distributed=True)):
        assert told(sound, "BN203") == []


def test_bn204(facts, layer):
    assert layers(facts(layer(), layer(name="base/bn", overruled=True), framework="keras"), "BN204") == [
        ("base/bn", "warning")
    ]


def test_bn301(facts, layer):
    off = layer(evaluates=False, running_mean=None, running_var=None)
    (finding,) = told(facts(off), "BN301")
    assert "it keeps no running statistics" in finding.evidence
    (finding,) = told(facts(layer(evaluates=False)), "BN301")
    assert "eval() leaves it in training mode" in finding.evidence
    assert "track running statistics, or" in finding.fix
    (finding,) = told(facts(layer(evaluates=False), framework="keras"), "BN301")
    assert "the statistics of the batch: it is called with training=True." in finding.evidence
    assert "eval()" not in finding.evidence + finding.fix
    assert "Hand on the training argument" in finding.fix
    assert told(facts(replace(off, seen=None)), "BN301") == []  # BN302


def test_bn302(facts, layer):
    unused = layer(name="aux", seen=None)
    assert layers(facts(layer(), unused), "BN302") == [("aux", "warning")]
    assert told(facts(unused, single=("aux",)), "BN302") == []
    assert list(CHECKS["BN302"](facts(unused))) == []  # no data was run


def calls(seen, *, apart, ratio, **changes):
    """Two calls so far apart in mean, in standard deviations, and by such a ratio in variance."""
    half = np.full(8, apart / 2)
    return seen(calls=2, apart=np.stack([half, -half]), call_var=np.stack([np.ones(8), np.full(8, ratio)]), **changes)


def test_bn303(facts, layer, seen):
    def flagged(**how):
        return told(facts(layer(seen=calls(seen, **how))), "BN303")

    (finding,) = flagged(apart=0.51, ratio=1.0)
    assert "Called 2 times" in finding.evidence
    assert "0.51 standard deviations and the variance by a factor of 1 (" in finding.evidence
    (finding,) = flagged(apart=0.0, ratio=2.1)
    assert "factor of 2.1" in finding.evidence
    assert finding.severity == "warning"
    assert flagged(apart=0.49, ratio=1.9) == []
    assert flagged(apart=0.6, ratio=2.1, samples=32) == []  # chance explains it
    assert len(flagged(apart=1.1, ratio=1.0, samples=32)) == 1
    assert told(facts(layer(trains=False, seen=calls(seen, apart=9, ratio=9))), "BN303") == []
    for unknown in ({"apart": None}, {"call_var": None}, {"calls": 1}, {"finite": False}):
        assert told(facts(layer(seen=replace(calls(seen, apart=9, ratio=9), **unknown))), "BN303") == []


def test_bn303_without_a_live_channel(facts, layer, seen):
    assert told(facts(layer(seen=calls(seen, apart=9, ratio=9, var=np.zeros(8)))), "BN303") == []


def test_bn304(facts, layer, seen):
    (finding,) = told(facts(layer(seen=seen(fewest=9))), "BN304")
    assert "had 9 values per channel" in finding.evidence
    assert "variance is 50% of it, and of its mean 33%" in finding.evidence
    assert layers(facts(layer(seen=seen(fewest=15))), "BN304") == [("bn", "warning")]
    for fewest in (16, 1):  # with one: BN311
        assert told(facts(layer(seen=seen(fewest=fewest))), "BN304") == []
    assert told(facts(layer(trains=False, seen=seen(fewest=4)), layer(seen=None)), "BN304") == []


def test_bn305(facts, layer, seen):
    var = seen().var.copy()
    var[:2] = 0.0, (1e-7 * seen().mean[1]) ** 2
    (finding,) = told(facts(layer(seen=seen(var=var))), "BN305")
    assert (finding.evidence, finding.severity) == ("2 of 8 channels are constant in the data.", "info")
    (finding,) = told(facts(layer(seen=None, running_var=np.where(np.arange(8) < 3, 1e-20, 1.0))), "BN305")
    assert finding.evidence == "3 of 8 channels are constant by the running statistics."
    assert told(facts(layer(seen=seen(mean=np.zeros(8), var=np.full(8, 1e-12)))), "BN305") == []


def test_bn305_where_nothing_passes(facts, layer, seen):
    (finding,) = told(facts(layer(seen=seen(var=np.zeros(8)))), "BN305")
    assert (finding.evidence, finding.severity) == ("8 of 8 channels are constant in the data.", "warning")
    assert finding.fix.startswith("Nothing passes")
    (finding,) = told(facts(layer(seen=seen(var=np.zeros(8), n=1))), "BN305")  # of one value that is no wonder
    assert finding.severity == "info"


def test_bn305_where_evaluation_would_blow_it_up(facts, layer, seen):
    silent = np.where(np.arange(8) < 2, 0.0, 1.0)
    gamma = np.where(np.arange(8) == 1, -3.0, 0.5)

    def flagged(**changes):
        known = {"seen": seen(var=silent), "running_var": silent, "gamma": gamma, "eps": 1e-12} | changes
        (finding,) = told(facts(layer(**known)), "BN305")
        return finding

    assert flagged().severity == "warning"
    assert "multiplies what arrives by up to 3e+06" in flagged().evidence
    assert "it is 1e-12" in flagged().fix
    assert "by up to 1e+06" in flagged(gamma=None).evidence
    for usual in ({"eps": 1e-5}, {"running_var": np.ones(8)}, {"running_mean": None, "running_var": None}):
        assert flagged(**usual).severity == "info"
        assert "multiplies" not in flagged(**usual).evidence


def stale(layer, seen, *, shift=0.0, ratio=1.0, channels=8, **changes):
    """Running statistics that are off in so many channels."""
    off = np.arange(8) < channels
    now = seen(**changes)
    return layer(
        running_mean=now.mean + np.where(off, shift, 0.0) * np.sqrt(now.var),
        running_var=now.var * np.where(off, ratio, 1.0),
        seen=now,
    )


def test_bn306(facts, layer, seen):
    def flagged(**how):
        return told(facts(stale(layer, seen, **how)), "BN306")

    (finding,) = flagged(shift=0.32)
    assert "In 8 of 8 live channels" in finding.evidence
    assert "off by 0.32 standard deviations, the variance is 1 times the data's" in finding.evidence
    assert finding.severity == "error"
    (finding,) = flagged(ratio=2.1)
    assert "the variance is 2.1 times" in finding.evidence
    assert len(flagged(ratio=1 / 2.1)) == len(flagged(shift=-0.32)) == 1
    assert flagged(shift=0.28, ratio=1.9) == []
    assert len(flagged(shift=0.32, channels=2)) == 1
    assert flagged(shift=9.0, channels=1) == []


def test_bn306_allows_for_sampling(facts, layer, seen):
    few = {"samples": 16, "batches": 1, "n": 16, "fewest": 16}
    assert told(facts(stale(layer, seen, shift=1.0, ratio=4.0, **few)), "BN306") == []
    assert len(told(facts(stale(layer, seen, shift=1.2, **few)), "BN306")) == 1
    assert len(told(facts(stale(layer, seen, ratio=5.0, **few)), "BN306")) == 1
    # A large share of the last batch makes the running mean as noisy as a batch.
    assert told(facts(replace(stale(layer, seen, shift=0.6), momentum=0.9)), "BN306") == []
    assert len(told(facts(replace(stale(layer, seen, shift=0.6), momentum=None)), "BN306")) == 1


def test_bn306_is_silent_where_it_cannot_tell(facts, layer, seen, fresh):
    far = stale(layer, seen, shift=9.0)
    broken = np.where(np.arange(8) < 1, NAN, far.running_mean)
    for unknown in (
        {"seen": None},
        {"seen": seen(finite=False)},
        {"seen": seen(fewest=15)},
        {"seen": seen(var=np.zeros(8))},
        {"trains": False},
        {"frozen_by_hand": True},
        {"running_mean": None, "running_var": None},
        {"running_mean": broken},
    ):
        assert told(facts(replace(far, **unknown)), "BN306") == []
    assert told(facts(fresh()), "BN306") == []  # BN102


def test_bn306_tells_what_is_left_of_the_start(facts, layer, seen):
    def slow(**changes):
        (finding,) = told(
            facts(replace(stale(layer, seen, shift=9.0), **{"running_var": np.ones(8)} | changes)), "BN306"
        )
        return finding.evidence

    assert slow(momentum=0.001, batches_seen=86).endswith(
        "After 86 batches at momentum=0.001, 92% of the start is in them."
    )
    for known in ({"batches_seen": 40}, {"batches_seen": None}, {"momentum": None}, {"momentum": 1.0}):
        assert "of the start" not in slow(**known)
    # A moving average of 8 batches holds 0.43 of the variance 1 that it began with: recalibrated ones need not.
    for var, told_of in ((np.full(8, 0.44), True), (np.where(np.arange(8) < 7, 5.0, 0.42), False)):
        assert ("of the start" in slow(batches_seen=8, momentum=0.1, running_var=var)) == told_of


def test_bn307(facts, layer, seen):
    def flagged(ratio, **changes):
        return told(facts(layer(seen=seen(iid_ratio=np.full(8, ratio), **changes))), "BN307")

    (finding,) = flagged(4.0)
    assert (
        "the means of the 16 batches vary 4 times as much as fair draws would, or more (limit 3.82)" in finding.evidence
    )
    assert finding.severity == "warning"
    assert flagged(3.8) == []
    assert flagged(10.0, batches=4) == []  # three degrees of freedom
    assert len(flagged(12.0, batches=4)) == 1
    assert flagged(99.0, batches=3) == []
    assert len(flagged(3.1, batches=1000)) == 1
    assert flagged(2.9, batches=1000) == []  # it is there, and does no harm
    few = np.where(np.arange(8) < 1, 99.0, 1.0)
    assert told(facts(layer(seen=seen(iid_ratio=few))), "BN307") == []
    assert flagged(NAN) == []
    assert told(facts(layer(seen=seen(iid_ratio=None)), layer(seen=None)), "BN307") == []


def test_bn307_asks_the_first_layer_that_can_tell(facts, layer, seen):
    unfair, fair = seen(iid_ratio=np.full(8, 99.0)), seen()
    second = layer(name="second", order=2, seen=unfair)
    for first in (
        layer(order=1, seen=None),
        layer(order=1, seen=seen(iid_ratio=None)),
        layer(order=1, trains=False),
        layer(order=1, seen=seen(finite=False)),
    ):
        assert layers(facts(second, first), "BN307") == [("second", "warning")]
    assert layers(facts(second, layer(order=1, seen=fair)), "BN307") == []
    assert layers(facts(second, layer(name="first", order=1, seen=unfair)), "BN307") == [("first", "warning")]


def test_bn307_one_batch_among_many(facts, layer, seen):
    def flagged(errors, off, share=8, **changes):
        some = np.arange(8) < share
        fair = {"iid_ratio": np.ones(8), "batches": 40, "samples": 1280}
        far = {"farthest": np.where(some, off, 0.1), "farthest_errors": np.where(some, errors, 2.0)}
        return told(facts(layer(seen=seen(**fair | far | changes))), "BN307")

    (finding,) = flagged(7.0, 0.5)
    assert "one of the 40 batches has a mean that is 7 standard errors off, or more (limit 5.6)" in finding.evidence
    assert finding.severity == "warning"
    assert flagged(5.5, 0.9) == []  # the farthest of forty fair ones may be
    assert flagged(50.0, 0.29) == []  # it is there, and does no harm
    assert len(flagged(7.0, 0.5, share=3)) == 1
    assert flagged(7.0, 0.5, share=1) == []
    assert flagged(5.7, 0.5, batches=1000) == []  # of more batches the farthest is farther
    assert flagged(7.0, 0.5, farthest=None, farthest_errors=None) == []
    (finding,) = flagged(7.0, 0.5, iid_ratio=np.full(8, 9.0))
    assert "vary 9 times as much" in finding.evidence
    # Where a channel is far but harmless, and another harmful but within chance, no channel is both.
    off, errors = np.where(np.arange(8) < 4, 0.2, 0.5), np.where(np.arange(8) < 4, 9.0, 3.0)
    assert flagged(0.0, 0.0, farthest=off, farthest_errors=errors) == []


def test_bn308(facts, layer, seen):
    def flagged(ratio, **changes):
        usual = {"evaluation_ratio": np.full(8, ratio), "samples": 640, "batches": 10}
        return told(facts(layer(seen=seen(**usual | changes))), "BN308")

    (finding,) = flagged(0.5)
    assert "at inference is 0.5 times the one in training" in finding.evidence
    assert finding.severity == "warning"
    assert len(flagged(0.74)) == 1
    assert flagged(0.76) == flagged(1.5) == flagged(NAN) == []
    assert len(flagged(0.49, samples=160)) == 1  # of sixteen samples each
    assert flagged(0.51, samples=160) == []
    assert flagged(0.5, fewest=15) == flagged(0.5, evaluation_ratio=None) == []


@pytest.mark.parametrize(
    ("gap", "recalibrated", "found"),
    [
        (0.52, 0.2, True),
        (0.48, 0.2, False),
        (0.09, 0.0, False),
        (NAN, 0.2, True),
        (np.inf, 0.2, True),
        (9.0, NAN, False),
    ],
)
def test_bn309(facts, layer, fresh, gap, recalibrated, found):
    output = OutputFacts(gap=gap, recalibrated_gap=recalibrated, moved=0.1, samples=48)
    findings = told(facts(output=output), "BN309")
    assert [(one.layer, one.severity) for one in findings] == ([("", "error")] if found else [])
    if found:
        assert (
            f"same 48 samples the outputs in training and in evaluation mode differ by {gap:.3g}"
            in findings[0].evidence
        )
    assert told(facts(fresh(**AS_MADE), output=output), "BN309") == []
    assert told(facts(layer(frozen_by_hand=True), output=output), "BN309") == []


def test_bn309_allows_for_few_batches(facts, layer, seen):
    def flagged(gap, batches):
        output = OutputFacts(gap=gap, recalibrated_gap=0.2, moved=0.1, samples=32)
        return told(facts(layer(seen=seen(batches=batches)), layer(name="aux", seen=None), output=output), "BN309")

    assert flagged(9.0, batches=1) == []  # the statistics of one batch are those of training
    assert flagged(0.65, batches=2) == []
    assert len(flagged(0.68, batches=2)) == 1


def test_bn309_sees_what_new_statistics_would_move(facts, layer, seen):
    def flagged(moved, left=0.2, samples=32, batches=16, **changes):
        output = OutputFacts(gap=2 * left, recalibrated_gap=left, moved=moved, samples=samples)
        return told(facts(layer(seen=seen(batches=batches), **changes), output=output), "BN309")

    (finding,) = flagged(0.3)
    assert "differ by 0.4 of their spread" in finding.evidence
    assert "move those in evaluation mode by 0.3, more than the draw" in finding.evidence
    assert (finding.layer, finding.severity) == ("", "error")
    assert flagged(0.24) == []
    assert flagged(0.3, left=0.4) == []  # the scatter of a batch's statistics is large, and theirs in proportion
    assert len(flagged(0.5, left=0.4)) == 1
    assert flagged(0.3, batches=2) == []
    assert flagged(0.3, samples=15) == []
    assert flagged(0.3, momentum=0.5) == []  # a quick average scatters more
    assert len(flagged(0.3, left=0.3, momentum=None)) == 1  # a cumulative one does not


def test_bn309_needs_outputs(facts):
    assert list(CHECKS["BN309"](facts(output=None))) == []


def test_bn310(facts, layer, seen):
    def padded(shift=0.0, ratio=1.0, channels=8, **changes):
        off, now = np.arange(8) < channels, seen()
        real_var = now.var / np.where(off, ratio, 1.0)
        real_mean = now.mean - np.where(off, shift, 0.0) * np.sqrt(real_var)
        return layer(seen=seen(real_mean=real_mean, real_var=real_var), **changes)

    (finding,) = told(facts(padded(shift=0.3)), "BN310")
    assert "the mean is 0.3 standard deviations off, and the variance is 1 times" in finding.evidence
    assert "it shows in 8 of 8 channels" in finding.evidence
    assert "bnlearn.torch.MaskedBatchNorm" in finding.fix
    assert "mask argument" in told(facts(padded(ratio=1.6, channels=2), framework="keras"), "BN310")[0].fix
    assert len(told(facts(padded(ratio=1 / 1.6)), "BN310")) == 1
    (finding,) = told(facts(padded(shift=9.0, kind="MaskedBatchNorm")), "BN310")
    assert "call the layer with a mask" in finding.fix
    for sound in (
        padded(shift=0.2, ratio=1.4),
        padded(shift=9.0, channels=1),
        padded(shift=9.0, trains=False),
        layer(),
        layer(seen=seen(real_mean=seen().mean + 9)),
        layer(seen=seen(var=np.zeros(8), real_mean=seen().mean + 9, real_var=seen().var)),
    ):
        assert told(facts(sound), "BN310") == []


def test_bn311(facts, layer):
    model = facts(layer(), layer(name="head", seen=None), layer(name="held", trains=False), single=("head", "held"))
    assert layers(model, "BN311") == [("head", "error")]
    assert "PyTorch raises" in told(model, "BN311")[0].evidence
    assert "Keras returns beta" in told(replace(model, framework="keras"), "BN311")[0].evidence


def test_bn312_names_the_first_layer(facts, layer, seen):
    bad = seen(finite=False)
    late, early = layer(name="late", order=2, seen=bad), layer(name="early", order=1, seen=bad)
    (finding,) = told(facts(late, layer(), early), "BN312")
    assert (finding.layer, finding.severity) == ("early", "error")
    assert "at 2 of 3 layers" in finding.evidence
    assert told(facts(layer(), layer(seen=None)), "BN312") == []


def test_bn401(facts):
    def flagged(holds, decay):
        return told(facts(optimizer={"bn": OptimizerFacts(holds=holds, decay=decay)}), "BN401")

    (finding,) = flagged(True, 0.0005)
    assert (finding.evidence, finding.severity) == ("The optimizer decays gamma or beta, by 0.0005.", "info")
    assert flagged(True, 0.0) == flagged(False, 0.1) == told(facts(), "BN401") == []


def test_bn402(facts, layer):
    (finding,) = told(facts(layer(axis_problem="axis=1 holds the rows of the image"), layer()), "BN402")
    assert (finding.evidence, finding.severity) == ("axis=1 holds the rows of the image.", "error")


def test_bn403(facts, layer):
    optimizer = {"bn": OptimizerFacts(holds=False, decay=0.0)}
    assert layers(facts(optimizer=optimizer), "BN403") == [("bn", "warning")]
    still = ({"momentum": 0.0}, {"updates": False})  # BN103
    for sound in (
        {"affine_trainable": False}, {"trains": False}, {"running_mean": None, "running_var": None}, *still
    ):  # fmt: skip
        assert told(facts(layer(**sound), optimizer=optimizer), "BN403") == []
    assert told(facts(optimizer={"bn": OptimizerFacts(holds=True, decay=0.0)}), "BN403") == told(facts(), "BN403") == []
    stale = layer(stale=True)  # BN404
    assert told(facts(stale, optimizer=optimizer), "BN403") == []


def test_bn404(facts, layer):
    (finding,) = told(facts(layer(), layer(stale=True), framework="keras"), "BN404")
    assert finding.severity == "warning"
    assert "is trainable now" in finding.evidence
    assert finding.evidence.endswith("what was switched stands still.")
    (finding,) = told(facts(layer(stale=True, affine_trainable=False, trains=False), framework="keras"), "BN404")
    assert "is frozen now" in finding.evidence
    assert finding.evidence.endswith("what was switched still moves.")
