"""The transform itself: what follows from the formula, checked in float64 on random problems.

None of these claims is about training, so there is nothing to tune: each seed is one random problem.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from bnlearn.claims import _transform as checks
from bnlearn.claims._claim import Claim, Criterion, Measurement, Scale

THEME = "The transform itself"
CHAPTER = "notebooks/21_the_transform"
BACKWARD = "notebooks/22_backward"
DATA = "random numbers"
ROUNDING = 1e-10
"""Relative: far above float64's rounding on these problems, and far below what a wrong formula is off by."""
SETTING = "One random problem per seed, in float64: shape, mean, spread, scale and shift are drawn. "


def _exact(name: str, effect: str, tolerance: float = ROUNDING) -> Criterion:
    return Criterion(name, effect, support=tolerance, exact=True)


def _checked(by_criterion: Mapping[str, checks.Check]) -> Callable[[Scale], dict[str, Measurement]]:
    """Each check on one random problem per seed."""

    def run(scale: Scale) -> dict[str, Measurement]:
        return {
            name: Measurement(np.array([check(checks.random(seed)) for seed in range(scale.seeds)]))
            for name, check in by_criterion.items()
        }

    return run


def _linearity(scale: Scale) -> dict[str, Measurement]:
    found = np.array([checks.linearity(checks.random(seed)) for seed in range(scale.seeds)])
    inference, training, added = found.T
    return {
        "at inference": Measurement(inference, {"departure": inference}),
        "in training": Measurement(added, {"in all": training, "by gamma and beta": added}),
    }


CLAIMS = (
    Claim(
        id="A1",
        statement="After batch normalisation every feature has mean zero and variance one.",
        sources=("P", "ioffe2015batch"),
        theme=THEME,
        setting=f"{SETTING}No scale and no shift; eps is 1e-5.",
        criteria=(
            _exact("mean", "largest mean of a feature"),
            _exact("formula", "variance of a feature against var / (var + eps), relative"),
            _exact("variance, inputs of variance 1 to 100", "largest distance of a feature's variance from 1", 1e-5),
            _exact(
                "variance, inputs of variance 1e-7 to 1e-5", "largest distance of a feature's variance from 1", 1e-5
            ),
        ),
        run=_checked(
            {
                "mean": checks.mean_of_outputs,
                "formula": checks.variance_formula,
                "variance, inputs of variance 1 to 100": checks.variance_of_outputs(1, 100),
                "variance, inputs of variance 1e-7 to 1e-5": checks.variance_of_outputs(1e-7, 1e-5),
            }
        ),
        chapter=CHAPTER,
        note="The variance is exactly var / (var + eps). Where a feature varies by less than eps, eps decides.",
        data=DATA,
    ),
    Claim(
        id="A2",
        statement="With gamma = sqrt(var + eps) and beta = mean, scale and shift undo the normalisation.",
        sources=("P", "ioffe2015batch"),
        theme=THEME,
        setting=f"{SETTING}The statistics are those of the batch.",
        criteria=(_exact("the batch it was taken from", "largest difference from the input, relative"),),
        run=_checked({"the batch it was taken from": checks.undone}),
        chapter=CHAPTER,
        note="For that batch only: for another, mean and variance are others.",
        data=DATA,
    ),
    Claim(
        id="A3",
        statement="Scale and shift add non-linearity to the network.",
        sources=("P",),
        theme=THEME,
        setting=f"{SETTING}An affine map of a mixture of two inputs is the mixture of what it makes of each.",
        criteria=(
            Criterion("at inference", "departure from an affine map, relative to the outputs", 0.01, 1e-9),
            Criterion("in training", "departure that gamma and beta add, relative to the outputs", 0.01, 1e-9),
        ),
        run=_linearity,
        chapter=CHAPTER,
        note="In training the map is not affine, but it is the batch's mean and variance that make it so.",
        data=DATA,
    ),
    Claim(
        id="A4",
        statement="A bias in front of batch normalisation is redundant.",
        sources=("ioffe2015batch", "P"),
        theme=THEME,
        setting=f"{SETTING}The gradient is PyTorch's, through a hyperbolic tangent after the normalisation.",
        criteria=(
            _exact("gradient", "largest gradient of a bias, relative to the sum of sizes that it is the sum of"),
            _exact("outputs", "largest change of the outputs as the bias changes, relative"),
        ),
        run=_checked({"gradient": checks.bias_gradient, "outputs": checks.bias_in_outputs}),
        chapter=BACKWARD,
        note="In training. With statistics that are fixed, a bias moves the outputs.",
        data=DATA,
    ),
    Claim(
        id="A5",
        statement="Inference works on one sample; in training the output for a sample depends on the others.",
        sources=("P", "ioffe2015batch"),
        theme=THEME,
        setting=f"{SETTING}Inference: a sample alone and in its batch. Training: a sample beside others.",
        criteria=(
            _exact("inference", "largest difference between alone and in a batch, relative"),
            Criterion("training", "change of a sample's output with its batch mates, relative", 0.01, 1e-9),
        ),
        run=_checked({"inference": checks.alone, "training": checks.among_others}),
        chapter=CHAPTER,
        data=DATA,
    ),
    Claim(
        id="A6",
        statement="Weights in front of batch normalisation are scale-invariant: a times larger, they give the same "
        "loss and a gradient a times smaller, which is orthogonal to them.",
        sources=("vanlaarhoven2017l2", "ioffe2015batch"),
        theme=THEME,
        setting="One random two-layer ReLU network per seed, in float64, 16 samples, cross-entropy, eps = 0; a is "
        "between 0.01 and 100.",
        criteria=(
            _exact("loss", "difference between the losses, relative"),
            _exact("gradient", "difference between the gradient and a times the one at a w, relative"),
            _exact("orthogonal", "largest cosine between a unit's weights and their gradient"),
        ),
        run=_checked({"loss": checks.same_loss, "gradient": checks.smaller_gradient, "orthogonal": checks.orthogonal}),
        chapter=BACKWARD,
        note="As long as eps is small beside the variance: see A14.",
        data=DATA,
    ),
    Claim(
        id="A7",
        statement="The gradient of the input sums to zero over the batch and is orthogonal to the normalised input.",
        sources=("-",),
        theme=THEME,
        setting=f"{SETTING}The gradient of the outputs is random too. Orthogonality at eps = 0.",
        criteria=(
            _exact("sum", "sum of a channel's gradient, relative to the sum of sizes"),
            _exact("orthogonal", "its product with the normalised input, relative to the sum of sizes"),
        ),
        run=_checked({"sum": checks.sum_of_gradient, "orthogonal": checks.gradient_along_outputs}),
        chapter=BACKWARD,
        data=DATA,
    ),
    Claim(
        id="A8",
        statement="Layer, instance and group normalisation are the formula of batch normalisation over other axes.",
        sources=("wu2018group", "ba2016layer", "ulyanov2016instance"),
        theme=THEME,
        setting=SETTING.strip(),
        criteria=(
            _exact("one group = layer norm", "largest difference between the outputs, relative"),
            _exact("a group per channel = instance norm", "largest difference between the outputs, relative"),
            _exact("instance norm = batch norm of each sample alone", "largest difference, relative"),
        ),
        run=_checked(
            {
                "one group = layer norm": checks.one_group,
                "a group per channel = instance norm": checks.groups_of_one,
                "instance norm = batch norm of each sample alone": checks.batches_of_one,
            }
        ),
        chapter="notebooks/71_one_picture",
        note="Layer norm over the channels and all positions. That of transformers, at each position, is another.",
        data=DATA,
    ),
    Claim(
        id="A9",
        statement="Folding batch normalisation into the layer before it leaves the function unchanged.",
        sources=("jacob2018quantization", "P"),
        theme=THEME,
        setting="One random layer, batch norm and batch per seed, in float64; folded by PyTorch's own functions.",
        criteria=(
            _exact("linear layer", "largest difference between the outputs, relative"),
            _exact("convolution", "largest difference between the outputs, relative"),
        ),
        run=_checked({"linear layer": checks.folded_linear, "convolution": checks.folded_convolution}),
        chapter="notebooks/41_pytorch",
        note="At inference. In half precision the folded weights are rounded anew.",
        data=DATA,
    ),
    Claim(
        id="A10",
        statement="PyTorch and Keras compute the same, but for their running variance, n / (n - 1) apart, and their "
        "momentum, 1 - m.",
        sources=("P", "pytorch2019", "keras"),
        theme=THEME,
        setting=f"{SETTING}PyTorch is run; for Keras, its documented rule: chapter 42 runs it.",
        criteria=(
            _exact("outputs", "PyTorch's outputs against the formula, relative"),
            _exact("PyTorch's running statistics", "difference from its documented rule, relative"),
            _exact(
                "Keras's running statistics", "PyTorch's with 1 - m and (n - 1) / n, against Keras's rule, relative"
            ),
        ),
        run=_checked(
            {
                "outputs": checks.torch_outputs,
                "PyTorch's running statistics": checks.torch_statistics,
                "Keras's running statistics": checks.keras_statistics,
            }
        ),
        chapter="notebooks/42_keras_tensorflow",
        note="Their defaults differ as well: momentum, eps and the axis of the channels.",
        data=DATA,
    ),
    Claim(
        id="A11",
        statement="Synchronised batch normalisation over k shards is batch normalisation of the whole batch.",
        sources=("peng2018megdet",),
        theme=THEME,
        setting=f"{SETTING}Three shards of different lengths.",
        criteria=(
            _exact("forward", "largest difference between the outputs, relative"),
            _exact("backward", "largest difference between the gradients of input, scale and shift, relative"),
        ),
        run=_checked({"forward": checks.synced_forward, "backward": checks.synced_backward}),
        chapter="notebooks/44_across_processes",
        data=DATA,
    ),
    Claim(
        id="A12",
        statement="Accumulating gradients over k small batches is not batch normalisation over the large one.",
        sources=("P",),
        theme=THEME,
        setting="One random two-layer ReLU network per seed, in float64, cross-entropy; a batch of 32, whole "
        "and in 4 parts.",
        criteria=(
            Criterion("batch norm", "distance between the gradients, relative to that of the whole batch", 0.01, 1e-9),
            _exact("layer norm, for comparison: no distance", "distance between the gradients, relative"),
        ),
        run=_checked(
            {
                "batch norm": checks.accumulated("batch", 4),
                "layer norm, for comparison: no distance": checks.accumulated("layer", 4),
            }
        ),
        chapter="notebooks/44_across_processes",
        data=DATA,
    ),
    Claim(
        id="A13",
        statement="PyTorch remembers another variance than it normalises by: with momentum 1, the batch just seen "
        "comes out sqrt((n - 1) / n) as large at inference as in training.",
        sources=("pytorch2019",),
        theme=THEME,
        setting=f"{SETTING}PyTorch's own batch norm, no eps to speak of.",
        criteria=(_exact("the batch just seen", "difference from the outputs of training, made smaller, relative"),),
        run=_checked({"the batch just seen": checks.replayed}),
        chapter="notebooks/41_pytorch",
        note="With many values per channel nobody sees it; with a handful it is one reason why the modes differ.",
        data=DATA,
    ),
    Claim(
        id="A14",
        statement="Batch normalisation does not see the mean and the scale of its inputs.",
        sources=("ioffe2015batch", "P"),
        theme=THEME,
        setting=f"{SETTING}Inputs of variance one are shifted and scaled, each feature by itself.",
        criteria=(
            _exact("eps = 0, scales from 1e-4 to 1e4", "largest change of the outputs, relative"),
            _exact("eps = 1e-5, scales from 1 to 1e4", "largest change of the outputs, relative", 1e-5),
            _exact("eps = 1e-5, scales from 1e-4 to 1e-2", "largest change of the outputs, relative", 1e-5),
        ),
        run=_checked(
            {
                "eps = 0, scales from 1e-4 to 1e4": checks.rescaled(0, 1e-4, 1e4),
                "eps = 1e-5, scales from 1 to 1e4": checks.rescaled(1e-5, 1, 1e4),
                "eps = 1e-5, scales from 1e-4 to 1e-2": checks.rescaled(1e-5, 1e-4, 1e-2),
            }
        ),
        chapter=CHAPTER,
        note="Small signals, as in front of late layers of a network that starts small, are where eps shows.",
        data=DATA,
    ),
    Claim(
        id="A15",
        statement="In a batch of two, batch normalisation keeps of a feature only which sample has more of it.",
        sources=("-",),
        theme=THEME,
        setting=f"{SETTING}Two samples, no positions, eps = 0.",
        criteria=(_exact("two samples", "largest difference of an output from the sign"),),
        run=_checked({"two samples": checks.two_samples}),
        chapter="notebooks/61_limits",
        note="With positions a batch of two images has many values per channel.",
        data=DATA,
    ),
    Claim(
        id="A16",
        statement="Of n normalised values per channel, none is larger than sqrt(n - 1); a single outlier reaches it.",
        sources=("-",),
        theme=THEME,
        setting="3 to 99 values per channel, eps = 0; drawn with heavy tails (Cauchy), or all the same but one.",
        criteria=(
            _exact("heavy tails", "excess over the bound, relative"),
            _exact("one outlier", "distance from the bound, relative"),
        ),
        run=_checked({"heavy tails": checks.beyond_the_bound, "one outlier": checks.one_outlier}),
        chapter="notebooks/61_limits",
        note="It bounds what an outlier can do in training, and at inference nothing does.",
        data=DATA,
    ),
)
