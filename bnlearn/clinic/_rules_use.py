"""The rules on how a layer is used: BN301 to BN305."""

from __future__ import annotations

from bnlearn.clinic._rule import Rule

__all__ = ["USE"]

USE = (
    Rule(
        code="BN301",
        title="Predictions depend on the batch",
        severity="warning",
        what="In evaluation mode the layer still normalises with the statistics of the batch.",
        why=(
            "The prediction for one sample changes with the others in its batch, a batch of one fails or gives nothing "
            "but beta, and one sample leaks into the result of another. An exported model may behave differently "
            "again."
        ),
        seen=(
            "PyTorch: `eval()` is called (and undone), and what the layer would use is read off: mode and running "
            "statistics. Keras: whether a call with `training=True` arrives while your data is run in inference."
        ),
        misses=(
            "Other layers that mix samples, and PyTorch models whose `forward` changes modes itself. Keras models "
            "without data."
        ),
        cure=(
            "Keep running statistics (`track_running_stats=True`; then `bnlearn.recalibrate`). In Keras, hand the "
            "`training` that `call` gets on to the layer, in the place of True. If the batch must "
            "matter, as in test-time adaptation, say so where the model is used. Else `bnlearn.replace(model, "
            '"group")`.'
        ),
        example="""\
import bnlearn
import torch

model = torch.nn.Sequential(
    torch.nn.Linear(8, 16), torch.nn.BatchNorm1d(16, track_running_stats=False), torch.nn.ReLU()
)

report = bnlearn.audit(model)
""",
        threads=(
            ("track_running_stats switched later", "pytorch/pytorch/issues/20967"),
            ("a batch of one that fails in evaluation", "pytorch/pytorch/issues/156051"),
        ),
    ),
    Rule(
        code="BN302",
        title="A BatchNorm that is never called",
        severity="warning",
        needs="data",
        what="The model holds the layer, but no batch of the data reached it.",
        why=(
            "Often a mistake in `forward`: another layer is called twice, or the line is missing. The layer takes no "
            "gradient, its statistics stay as made, and data-parallel training may wait for it for ever."
        ),
        seen="Calls are counted while the data is run in training mode.",
        misses=(
            "Layers that are called at the wrong place. Branches that only some data takes need data that takes them."
        ),
        cure="Call it where it was meant to be, or remove it.",
        example="""\
import bnlearn
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(8, 16)
        self.bn1, self.bn2 = torch.nn.BatchNorm1d(16), torch.nn.BatchNorm1d(16)

    def forward(self, x):
        return self.bn1(self.linear(x))  # bn2 is forgotten

torch.manual_seed(0)
report = bnlearn.audit(Net(), [torch.randn(32, 8) for _ in range(4)])
""",
    ),
    Rule(
        code="BN303",
        title="One BatchNorm for inputs that differ",
        severity="warning",
        needs="data",
        what="The layer is called several times in a forward pass, with inputs of clearly different mean or variance.",
        why=(
            "In training each call normalises with its own statistics. The running ones are a mixture, which fits none "
            "of them: evaluation does something that training never did. Two domains in turn, the scales of a feature "
            "pyramid, real and generated images, and the steps of a recurrent network are the usual cases."
        ),
        seen=(
            "Mean and variance at each call. In the median channel the calls lie more than half a standard deviation "
            "apart, or differ by a factor of two in variance, and by more than chance would explain."
        ),
        misses="Inputs that differ from one forward pass to the next: see BN307.",
        cure=(
            "One BatchNorm for each place, with shared weights before it if you like: statistics cost next to nothing. "
            "Or put all inputs into one batch, or use a normaliser without running statistics."
        ),
        example="""\
import bnlearn
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.bn = torch.nn.Linear(8, 16), torch.nn.BatchNorm1d(16)

    def forward(self, x):
        return self.bn(self.linear(x)) + self.bn(self.linear(3 * x + 2))  # two domains, one layer

torch.manual_seed(0)
report = bnlearn.audit(Net(), [torch.randn(64, 8) for _ in range(8)])
""",
        threads=(("one layer for real and for generated images", "carpedm20/DCGAN-tensorflow/issues/266"),),
    ),
    Rule(
        code="BN304",
        title="Few values per channel",
        severity="warning",
        needs="data",
        what="A batch brought fewer than sixteen values per channel to a layer that trains.",
        why=(
            "The mean and the variance of so few values are mostly noise: with eight, the standard error of the "
            "variance is half of it. Training sees that noise, evaluation does not. Tiny batches of large images, the "
            "last batch of an epoch, and layers after global pooling are the usual cases."
        ),
        seen="The smallest number of samples times positions that a call in training had.",
        misses="Values that are many but almost equal, as neighbouring pixels are.",
        cure=(
            'Larger batches; dropping the last one; `bnlearn.replace(model, "group")`; freezing statistics that are '
            "already good (`bnlearn.freeze`); synchronising over processes. Accumulating gradients does not help."
        ),
        example="""\
import bnlearn
import torch

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.BatchNorm1d(16), torch.nn.ReLU())

report = bnlearn.audit(model, [torch.randn(4, 8) for _ in range(16)])
""",
        threads=(("gradient accumulation is not a larger batch", "open-mmlab/mmcv/issues/1869"),),
    ),
    Rule(
        code="BN305",
        title="Dead channels",
        severity="info",
        what="Some channels have no variance: the same value arrives for every sample and position.",
        why=(
            "The layer turns such a channel into beta and nothing else. It costs time and memory. In evaluation, "
            "should a dead channel ever move, dividing by the root of epsilon blows it up: some three hundred times "
            "with PyTorch's default, some thirty with Keras's."
        ),
        seen=(
            "A variance that float32 cannot tell from zero, in the data or else in the running statistics. It is a "
            "warning if all channels of the layer are silent, or if epsilon is so small that evaluation would multiply "
            "one by more than ten thousand."
        ),
        misses="Channels that are dead on other data than yours.",
        cure="Prune them, or look for the cause: units whose ReLU never opens, an input feature that is constant.",
        example="""\
import bnlearn
import torch

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.BatchNorm1d(16))
with torch.no_grad():
    model[0].bias[:4] = -100.0  # four units whose ReLU never opens

report = bnlearn.audit(model, [torch.randn(32, 8) for _ in range(4)])
""",
    ),
)
