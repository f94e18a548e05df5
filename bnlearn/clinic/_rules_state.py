"""The rules on what a layer holds: BN101 to BN108."""

from __future__ import annotations

from bnlearn.clinic._rule import Rule

__all__ = ["STATE"]

STATE = (
    Rule(
        code="BN101",
        title="The running statistics are not finite, or a variance is negative",
        severity="error",
        what="A running mean or variance is NaN or infinite, or a running variance is below zero.",
        why=(
            "In training nothing shows, for each batch brings its own statistics. In evaluation every output is NaN. "
            "One batch with a NaN is enough: an exponential average never forgets it."
        ),
        seen="The buffers are read. No data is needed.",
        misses="Statistics that are finite but absurd; with data, BN306 finds those.",
        cure=(
            "Find the batch that broke them (BN312 says which layer it reaches first), then compute the statistics "
            "anew: `bnlearn.recalibrate(model, data)`. The weights need not be trained again, unless they are NaN too "
            "(BN108)."
        ),
        example="""\
import bnlearn
import torch

model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.BatchNorm1d(16), torch.nn.ReLU())
model(torch.full((32, 8), float("nan")))  # one broken batch, in training mode

report = bnlearn.audit(model)
""",
    ),
    Rule(
        code="BN102",
        title="The running statistics were never updated",
        severity="error",
        what=(
            "The running mean is exactly 0 and the running variance exactly 1, although gamma and beta were trained. "
            "It is an *info* where gamma and beta are as made too: then the layer, or the whole model, is simply new."
        ),
        why=(
            "In evaluation the layer does not normalise at all. The usual way there: someone copied `parameters()`, "
            "which leaves the statistics behind, because they are buffers. Target networks in reinforcement learning, "
            "averaged weights, federated averaging and `load_state_dict(..., strict=False)` all do it. Another way: "
            "the model was trained in evaluation mode."
        ),
        seen=(
            "Mean 0 and variance 1 in every channel, and no batch counted where the framework counts them. A PyTorch "
            "model that stands in evaluation mode is not taken for new."
        ),
        misses=(
            "Layers without gamma and beta, in training mode: nothing tells a new one from a trained one. And "
            "statistics copied from elsewhere that are not exactly 0 and 1; with data, BN306 finds those."
        ),
        cure=(
            "Copy the whole `state_dict()`, not `parameters()` only; in Keras `get_weights()`, not "
            "`trainable_variables`. If the statistics are gone: `bnlearn.recalibrate(model, data)`."
        ),
        example="""\
import bnlearn
import torch

def make():
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.BatchNorm1d(16), torch.nn.ReLU())

online, target = make(), make()
optimizer = torch.optim.SGD(online.parameters(), lr=0.1)
(online(torch.randn(64, 8)) - 1).square().mean().backward()
optimizer.step()
target.load_state_dict(dict(online.named_parameters()), strict=False)  # the statistics stay behind

report = bnlearn.audit(target)
""",
        threads=(
            ("target networks without the statistics", "DLR-RM/stable-baselines3/pull/1004"),
            (
                "averaged checkpoints, and what becomes of their statistics",
                "huggingface/pytorch-image-models/issues/224",
            ),
        ),
    ),
    Rule(
        code="BN103",
        title="The running statistics never move",
        severity="warning",
        what=(
            "The new batch has a share of zero in the running statistics: `momentum=0` in PyTorch, `momentum=1` in "
            "Keras. Or, in PyTorch, `track_running_stats` was set to `False` after the layer was made: it keeps the "
            "statistics of that moment."
        ),
        why="The layer trains with the batch's statistics, and is evaluated with those that it started with.",
        seen="The momentum and `track_running_stats` are read, in layers that have statistics and train.",
        misses="A momentum so small that the statistics hardly move; with data, BN306 finds what comes of it.",
        cure=(
            "To freeze a layer, freeze it: `bnlearn.freeze(model, layers=[...])`. For a plain average over all "
            "batches, PyTorch has `momentum=None`. Else use the default."
        ),
        example="""\
import bnlearn
import torch

model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.BatchNorm1d(16, momentum=0.0), torch.nn.ReLU())

report = bnlearn.audit(model)
""",
        threads=(("track_running_stats switched later", "pytorch/pytorch/issues/20967"),),
    ),
    Rule(
        code="BN104",
        title="The momentum looks like the other framework's",
        severity="warning",
        what=(
            "PyTorch's momentum is the weight of the *new* batch (default 0.1); Keras's is the weight of the *old* "
            "average (default 0.99). This one looks as if it had been carried over as it is."
        ),
        why=(
            "With 0.99 in PyTorch the running statistics are those of the last batch: evaluation becomes as noisy as "
            "one batch, and depends on which came last. With 0.01 in Keras, the same."
        ),
        seen="The share of the new batch is a half or more, in a layer that trains.",
        misses=(
            "A number that makes sense in both, such as 0.3. And a share that is too small: Keras's default of 0.99 "
            "needs hundreds of steps before its statistics are any good, which BN306 and BN309 show on data."
        ),
        cure="One minus it: PyTorch's 0.1 is Keras's 0.9. `bnlearn.convert.transfer` does it as it moves a model.",
        example="""\
import bnlearn
import torch

model = torch.nn.Sequential(
    torch.nn.Conv2d(3, 16, 3), torch.nn.BatchNorm2d(16, momentum=0.99), torch.nn.ReLU()  # Keras's default
)

report = bnlearn.audit(model)
""",
        threads=(("momentum means the opposite in the other framework", "pytorch/examples/issues/289"),),
    ),
    Rule(
        code="BN105",
        title="Epsilon is larger than the variance",
        severity="warning",
        what="In most channels that vary at all, the variance is less than a hundredth of epsilon.",
        why=(
            "The layer divides by the square root of variance plus epsilon. Where epsilon rules, the output is not of "
            "unit variance but still tiny, and depends on the input's scale. Values far below one, since the unit is "
            "too large (micrometres given in metres, returns per second), and epsilons set by hand are the usual "
            "reasons."
        ),
        seen=(
            "The variance of what arrives, or without data the running one, against `eps`. Channels without any "
            "variance do not count."
        ),
        misses="Epsilons up to a hundred times the variance: they leave a standard deviation of a tenth or more.",
        cure="Bring the input to a sensible scale before the first layer, or set an `eps` far below its variance.",
        example="""\
import bnlearn
import torch

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 2))
micrometres_in_metres = [torch.randn(32, 8) * 1e-6 for _ in range(4)]

report = bnlearn.audit(model, micrometres_in_metres)
""",
    ),
    Rule(
        code="BN106",
        title="The running statistics are in half precision",
        severity="error",
        what="The running mean and variance are stored in float16 or bfloat16.",
        why=(
            "A running average adds a small share of a small difference at each step. In half precision that share is "
            "soon below the last bit, and the average stops moving. In float16 a variance above 65504 is infinite, and "
            "one below 3e-8 is zero."
        ),
        seen="The type of the buffers.",
        misses="Activations in half precision beside float32 statistics: frameworks compute those in float32 inside.",
        cure=(
            "`model.half()` converts the statistics too. Use automatic mixed precision instead (`torch.autocast`, "
            "Keras's `mixed_float16`), or bring the normalisation layers back with `.float()`. If the averages have "
            "stood still: `bnlearn.recalibrate(model, data)`."
        ),
        example="""\
import bnlearn
import torch

model = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.BatchNorm2d(16), torch.nn.ReLU())
model.half()

report = bnlearn.audit(model)
""",
        threads=(("what mixed precision does to BatchNorm, and what not", "pytorch/pytorch/issues/88929"),),
    ),
    Rule(
        code="BN107",
        title="A bias just before BatchNorm does nothing",
        severity="info",
        needs="data",
        what="The layer before adds a bias, and its output arrives here untouched.",
        why=(
            "BatchNorm takes the mean away, and the bias with it. The bias gets no gradient but rounding errors, costs "
            "memory, and drifts under weight decay. It is harmless."
        ),
        seen="The very tensor that a biased linear or convolutional layer returned is the one that arrives.",
        misses="A bias with anything in between, such as a reshape, a dropout or an addition.",
        cure="`bias=False` (`use_bias=False` in Keras). In a trained model it can stay: `bnlearn.fold` takes it along.",
        example="""\
import bnlearn
import torch

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.BatchNorm1d(16), torch.nn.ReLU())

report = bnlearn.audit(model, [torch.randn(32, 8) for _ in range(4)])
""",
        threads=(("is the bias harmful, or only redundant?", "cszn/KAIR/issues/4"),),
    ),
    Rule(
        code="BN108",
        title="Gamma or beta is not finite",
        severity="error",
        what="A scale or a shift is NaN or infinite.",
        why=(
            "What its channel gives is NaN or infinite, in training and in evaluation, and the next layers spread it. "
            "Most often the training diverged."
        ),
        seen="The parameters are read. No data is needed.",
        misses="Other parameters of the model; only those of normalisation layers are read.",
        cure=(
            "Go back to a checkpoint before the divergence. Then a smaller learning rate, a warm-up, clipped "
            "gradients, or, in half precision, a loss scale."
        ),
        example="""\
import bnlearn
import torch

model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.BatchNorm1d(16), torch.nn.Linear(16, 1))
loss = model(torch.randn(32, 8)).sqrt().mean()  # the root of a negative number
loss.backward()
torch.optim.SGD(model.parameters(), lr=0.1).step()

report = bnlearn.audit(model)
""",
    ),
)
