"""Claims about leaks: the data, the masked network, the pairs, and the area under the curve."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from bnlearn.claims import leaks
from bnlearn.lab import MLP, BatchNorm, Data, Moment, Pass


def passing(network, training, buffers=None):
    return Pass(training, {}, {}, dict(network.buffers() if buffers is None else buffers))


def test_padded_sequences_and_their_mask():
    data = leaks.padded(flat=False)
    for part, longest in ((data.train, leaks.LENGTH), (data.validation, leaks.LENGTH), (data.test, 4)):
        x, mask = part.x[:, :-1], part.x[:, -1]
        assert x.shape[1:] == (leaks.FEATURES, leaks.LENGTH)
        assert set(np.unique(mask)) == {0.0, 1.0}
        assert (x * (1 - mask[:, None]) == 0).all()
        assert mask.sum(1).min() >= 1
        assert mask.sum(1).max() == longest


def test_only_the_masked_network_does_not_see_the_padding(rng):
    x = torch.from_numpy(leaks.padded(flat=False).train.x[:32])
    longer = torch.cat([x, torch.zeros(32, leaks.FEATURES + 1, 10)], 2)
    for masked in (True, False):
        net = leaks.PositionNet(masked=masked)
        p = net.parameters(torch.Generator().manual_seed(0), {})
        runs = passing(net, True), passing(net, True)
        a, b = (net(p, data, run) for data, run in zip((x, longer), runs, strict=True))
        assert torch.allclose(a, b, atol=1e-5) == masked
        assert torch.allclose(runs[0].buffers["mean"], runs[1].buffers["mean"], atol=1e-5) == masked
        assert net(p, x, passing(net, False, runs[0].buffers)).shape == (32, 6)


def test_pairs_ask_for_the_second_digit():
    data, digits = leaks.pairs(flat=True), Data().load()
    known = {tuple(row.tolist()): int(label) for row, label in zip(*digits.train, strict=True)}
    assert all(known[tuple(row[64:].tolist())] == label for row, label in zip(data.train.x, data.train.y, strict=True))
    assert (data.train.x[:, :64] == digits.train.x.numpy()).all()


def test_a_pair_is_a_batch_and_reads_its_first_row(rng):
    x = torch.from_numpy(rng.standard_normal((6, 128)).astype(np.float32))
    other = x.clone()
    other[:, 64:] = torch.flip(other[:, 64:], [0])  # other second digits
    company = x[[0, 5, 4, 3, 2, 1]]  # other pairs beside the first
    for over_batch in (True, False):
        net = leaks.PairNet(over_batch)
        p = net.parameters(torch.Generator().manual_seed(0), {})
        y = net(p, x, passing(net, True))
        assert y.shape == (6, 10)
        assert torch.allclose(y, net(p, other, passing(net, True)), atol=1e-5) != over_batch
        torch.testing.assert_close(y[0], net(p, company, passing(net, True))[0], rtol=1e-4, atol=1e-5)


def test_rare_cases_are_rare_everywhere():
    data = leaks.rare(flat=True)
    for part in (data.train, data.validation, data.test):
        assert 0.01 < part.y.mean() < 0.03
    x, y = data.train
    assert (x[y == 1, :5].mean(0) > 0.6).all()
    assert (abs(x[y == 0].mean(0)) < 0.1).all()


def test_the_area_under_the_curve(rng):
    x = torch.from_numpy(rng.integers(0, 5, (200, 3)).astype(np.float32))  # with ties
    y = torch.from_numpy((rng.random(200) < 0.2).astype(np.int64))
    seen = SimpleNamespace(
        data=SimpleNamespace(test=(x, y), validation=(x[:100], y[:100])),
        forward=lambda x, training: torch.stack([x[:, 1], x[:, 0] + x[:, 2]], 1),
    )
    score = (x[:, 0] + x[:, 2] - x[:, 1]).numpy()
    np.testing.assert_allclose(float(leaks.ranking(seen)), roc_auc_score(y, score), rtol=1e-6)
    np.testing.assert_allclose(float(leaks.ranking(seen, "validation")), roc_auc_score(y[:100], score[:100]), rtol=1e-6)


def test_dropout_widens_what_the_next_batch_norm_sees():
    net = MLP((64, 40, 40, 10), norm=BatchNorm(), dropout=True)
    generator, data = torch.Generator().manual_seed(0), Data().load()
    p = net.parameters(generator, {})
    batch = (data.train.x[:256], data.train.y[:256])
    noise = {name: torch.rand(shape, generator=generator) for name, shape in net.noise(256).items()}
    moment = Moment(net, p, net.buffers(), {"dropout": torch.tensor(0.5)}, noise, batch, data, 1.0, tuple(p))
    assert 1.1 < leaks.variance_ratio(moment) < 2
    assert leaks.variance_ratio(replace(moment, knobs={"dropout": torch.tensor(0.0)})) == 1
