"""The rules on what arrives at a layer, against what it holds and assumes: BN306 to BN312."""

from __future__ import annotations

from bnlearn.clinic._rule import Rule

__all__ = ["DATA"]

DATA = (
    Rule(
        code="BN306",
        title="The running statistics are far from the data's",
        severity="error",
        needs="data",
        what=(
            "The running mean and variance are not those of what arrives at the layer when your data is run in "
            "training."
        ),
        why=(
            "Training normalises with the batch, evaluation with these. Where they disagree, evaluation is another "
            "network. Weights that were averaged or edited after training, a momentum that is too slow for a short "
            "training, other data, and other preprocessing all do this."
        ),
        seen=(
            "Mean and variance over all the data, in training mode, against the running ones. In a quarter of the "
            "channels that vary, the mean is off by 0.3 standard deviations or the variance by a factor of two; and by "
            "more than four standard errors, those of the sample and of the moving average together."
        ),
        misses=(
            "Layers that are frozen (their statistics are what training uses), layers with few values per channel, and "
            "small samples: with 64 samples only gross errors count. Give a few hundred. Small errors in many layers: "
            "BN309 sees what they add up to."
        ),
        cure=(
            "`bnlearn.recalibrate(model, data)`, with data as in training. No weight changes. Is the first layer far "
            "off, by a large factor? Then look at units and preprocessing before: recalibrated, the model would fit "
            "the wrong ones, and nothing would tell any more. If another finding names what has spoilt the statistics, "
            "mend that first. If you trained on another mixture of classes than this data has (a rare one "
            "oversampled), do not recalibrate on it: the statistics belong to the weights. Audit with the batches that "
            "you train with."
        ),
        example="""\
import bnlearn
import torch

torch.manual_seed(0)
batches = [torch.randn(32, 8) + 3 for _ in range(16)]
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.BatchNorm1d(16), torch.nn.ReLU())
for _ in range(5):
    for batch in batches:
        model(batch)
with torch.no_grad():
    model[0].weight.mul_(3)  # edited after training, as averaging weights does

report = bnlearn.audit(model, batches)
""",
        threads=(
            ("evaluation far worse than training", "pytorch/pytorch/issues/4741"),
            ("a momentum that is too slow", "keras-team/keras/issues/10666"),
            ("averaged checkpoints", "huggingface/pytorch-image-models/issues/224"),
        ),
    ),
    Rule(
        code="BN307",
        title="The batches are not fair draws from the data",
        severity="warning",
        needs="data",
        what="The means of the batches differ from each other by much more than those of random draws would.",
        why=(
            "If each batch holds one class, one patient or one day, BatchNorm removes what tells them apart: in "
            "training the network cannot see it, in evaluation it suddenly can. The gradients are biased as well."
        ),
        seen=(
            "The variance of the batches' means, times the samples per batch, over the variance of the samples' means: "
            "about 1 for fair draws. A finding needs a quarter of the channels above 3 and above what chance gives "
            "once in a million, and at least four batches. Or a single batch, of sixteen samples or more, is off: in a "
            "quarter of the channels its mean lies 0.3 standard deviations away, and further than the farthest of so "
            "many fair batches would once in a million. Only the first layer that normalises by the batch is asked."
        ),
        misses=(
            "Batches that are balanced but not fair; a single unfair batch that is small, or off by little; and a "
            "second input of the model whose first BatchNorm is not the model's first. Layers whose rows are not "
            "the batch's samples, such as a detector's head for regions: give the head and its inputs. A loader that "
            "you made for validation, unshuffled, is flagged: give the one you train with."
        ),
        cure="Shuffle (`shuffle=True`; `dataset.shuffle` with a buffer as large as the data, before `batch`).",
        example="""\
import bnlearn
import torch

torch.manual_seed(0)
x = torch.randn(512, 8)
x = x[x[:, 0].argsort()] * 2  # sorted, as files on a disk often are
model = torch.nn.Sequential(torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 2))
x[:, 1:] += x[:, :1]  # the other features go along

report = bnlearn.audit(model, list(x.split(32)))
""",
    ),
    Rule(
        code="BN308",
        title="Dropout shifts the variance that BatchNorm learned",
        severity="warning",
        needs="data",
        what="Something that is random in training, mostly a dropout before the layer, is off at inference.",
        why=(
            "Dropout keeps the mean and raises the variance. BatchNorm learns that variance. At inference the variance "
            "is lower, the running one too large, and the outputs too small. Recalibration hides it in evaluation "
            "mode, and training goes on with the other one."
        ),
        seen=(
            "On the second batch of two samples or more: the variance that arrives at inference over the one in "
            "training, below 0.75 in the median channel (lower in batches of fewer than 64 samples, which scatter). "
            "The layers use that batch's statistics both times."
        ),
        misses=(
            "A single batch: two are needed. A little dropout (a tenth, say), dropout that many layers lie behind, a "
            "layer behind one that has shifted already, and batches of a few samples."
        ),
        cure=(
            "Dropout after the last BatchNorm of the network, as most published networks have it; or less of it; or a "
            "dropout of whole samples' paths (stochastic depth)."
        ),
        example="""\
import bnlearn
import torch

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(64, 64), torch.nn.BatchNorm1d(64), torch.nn.ReLU())

report = bnlearn.audit(model, [torch.randn(64, 64) for _ in range(8)])
""",
    ),
    Rule(
        code="BN309",
        title="Training and evaluation give different outputs",
        severity="error",
        needs="data",
        what="For the same samples the outputs differ between training and evaluation mode by more than they must.",
        why=(
            "Some difference is normal: batches are small, dropout is random. What recalibration would remove is not: "
            "it comes from the running statistics. This is the finding that users notice, as a validation loss that is "
            "far above the training loss."
        ),
        seen=(
            "The gap as it is, against the gap that would remain if the running statistics were those of the data: "
            "more than about twice as large, plus a tenth of the outputs' spread. Or, in a batch of sixteen samples or "
            "more, such statistics would move the outputs in evaluation mode by a quarter of their spread, and by "
            "three times what the draw of the batches explains. Nothing is flagged while layers are still new."
        ),
        misses=(
            "A single batch: two are needed. Gaps that recalibration does not close: see BN304, BN307 and BN308. "
            "Overfitting, which is something else."
        ),
        cure="`bnlearn.recalibrate(model, data)`; BN306 names the layers.",
        example="""\
import bnlearn
import torch

torch.manual_seed(0)
batches = [torch.randn(64, 8) * 4 + 3 for _ in range(8)]
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.BatchNorm1d(16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
for batch in batches:
    model(batch / 4)  # trained on other units

report = bnlearn.audit(model, batches)
""",
        threads=(
            ("evaluation far worse than training", "pytorch/pytorch/issues/4741"),
            ("the same layer, two outputs", "pytorch/pytorch/issues/5406"),
        ),
    ),
    Rule(
        code="BN310",
        title="Padding counts in the statistics",
        severity="warning",
        needs="mask",
        what="Positions that the mask calls padding change the layer's mean and variance noticeably.",
        why=(
            "Padding pulls the mean to its own value and shrinks the variance. How much depends on the longest "
            "sequence in the batch, so a sequence is normalised differently in other company."
        ),
        seen=(
            "Statistics with and without the padding. In a quarter of the channels the mean moves by a quarter of a "
            "standard deviation, or the variance by a factor of 1.5. Of a layer that is called with a mask of its own, "
            "what this lets through is compared."
        ),
        misses="Layers whose input has other positions than the mask, such as those behind a stride.",
        cure=(
            "Count real positions only: `bnlearn.torch.MaskedBatchNorm`, or the `mask` of Keras's layer. Or normalise "
            "each position by itself (layer norm)."
        ),
        example="""\
import bnlearn
import torch

torch.manual_seed(0)
length = torch.randint(4, 32, (128, 1))
mask = torch.arange(32) < length  # (N, L), True where real
x = torch.where(mask[:, None], torch.randn(128, 8, 32) + 2, 0.0)
model = torch.nn.Sequential(torch.nn.BatchNorm1d(8), torch.nn.Conv1d(8, 4, 1))
batches = list(zip(x.split(32), mask.split(32)))

report = bnlearn.audit(model, batches, mask=lambda batch: batch[1])
""",
        threads=(
            ("sequences of different lengths", "pytorch/pytorch/issues/70529"),
            ("masks in Keras's layer", "keras-team/keras/issues/18759"),
        ),
    ),
    Rule(
        code="BN311",
        title="A batch with one value per channel",
        severity="error",
        needs="data",
        what="One of the batches brings a single value per channel to a layer that trains.",
        why=(
            "The variance of one value is zero. PyTorch raises at that batch, mostly the last of an epoch, when the "
            "others are done. Keras returns beta whatever came in, and moves the running variance towards zero."
        ),
        seen="The shapes of what arrives; the batch is left out of the audit.",
        misses="Data that you did not give: run a whole epoch's loader, or set its sizes as in training.",
        cure="`drop_last=True` (`drop_remainder=True`), or a batch size that does not leave one over.",
        example="""\
import bnlearn
import torch

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.BatchNorm1d(16), torch.nn.ReLU())

report = bnlearn.audit(model, list(torch.randn(65, 8).split(32)))  # 32, 32, 1
""",
        threads=(("the last batch has one sample", "pytorch/pytorch/issues/4534"),),
    ),
    Rule(
        code="BN312",
        title="NaN or infinity arrives",
        severity="error",
        needs="data",
        what="A value that is not finite arrives at the layer while your data is run.",
        why=(
            "One such value makes the mean NaN, and with it the whole channel for every sample of the batch; in "
            "training the running statistics are NaN for good (BN101)."
        ),
        seen="What arrives is checked. The first layer is named, for NaN spreads to all after it.",
        misses="Batches that you did not give.",
        cure="Clean the data, or mend the layer before; then `bnlearn.recalibrate(model, data)`.",
        example="""\
import bnlearn
import torch

torch.manual_seed(0)
x = torch.randn(128, 8)
x[77, 3] = float("nan")  # a missing value
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.BatchNorm1d(16), torch.nn.ReLU())

report = bnlearn.audit(model, list(x.split(32)))
""",
    ),
)
