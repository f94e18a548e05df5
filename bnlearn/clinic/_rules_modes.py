"""The rules on modes and on set-up: BN201 to BN204, and BN401 to BN404."""

from __future__ import annotations

from bnlearn.clinic._rule import Rule

__all__ = ["MODES", "SETUP"]

MODES = (
    Rule(
        code="BN201",
        title="Half frozen: gamma and beta stand still, the statistics move",
        severity="warning",
        what="Gamma and beta take no gradient, but in training the layer still updates its running statistics.",
        why=(
            "`requires_grad=False` freezes parameters. The running statistics are buffers: each forward pass in "
            "training mode moves them on. A backbone that was to stay as it is drifts towards the new data, and a "
            "model whose weights did not change gives other outputs than before."
        ),
        seen=(
            "Gamma and beta without gradient, in a layer that uses and tracks batch statistics in training. A model "
            "that stands in evaluation mode as a whole, with no BatchNorm that learns, is taken for one that is only "
            "used."
        ),
        misses="A frozen model that stands in evaluation mode now, and is set to training later.",
        cure=(
            "`bnlearn.freeze(model, layers=[...])`: parameters and statistics, and `train()` does not undo it. To "
            "adapt the statistics on purpose, with fixed weights, ignore this finding."
        ),
        example="""\
import bnlearn
import torch

model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.BatchNorm1d(16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
model[:3].requires_grad_(False)  # "the backbone is frozen"

report = bnlearn.audit(model)
""",
        threads=(
            ("an easy way to freeze the statistics", "pytorch/pytorch/issues/86590"),
            ("what trainable=False used to mean in Keras", "keras-team/keras/issues/6570"),
        ),
    ),
    Rule(
        code="BN202",
        title="BatchNorm layers in different modes",
        severity="warning",
        what=(
            "Some layers use the batch's statistics in a model that stands in evaluation mode; or some were set to "
            "evaluation by hand in a model that trains, beside others that train."
        ),
        why=(
            "The first makes predictions depend on what else is in the batch. The second works until the next "
            "`model.train()`, which every epoch begins with, and then silently stops working."
        ),
        seen="The mode of each layer against the model's, and what `train()` makes of it, found by calling it.",
        misses=(
            "Layers that are all set to evaluation by hand: a loop that does so after each `train()` is right. If "
            "yours does so for some of the layers, ignore the finding, or let `bnlearn.freeze` do it once for all."
        ),
        cure=(
            "`bnlearn.freeze(model, layers=[...])` for those to be frozen; `model.eval()` on the whole model to use it."
        ),
        example="""\
import bnlearn
import torch

model = torch.nn.Sequential(
    torch.nn.Linear(8, 16), torch.nn.BatchNorm1d(16), torch.nn.Linear(16, 16), torch.nn.BatchNorm1d(16)
)
model.train()
model[1].eval()  # frozen, until the next model.train()

report = bnlearn.audit(model)
""",
        threads=(("freezing that has to be done again in every epoch", "pytorch/pytorch/issues/37823"),),
    ),
    Rule(
        code="BN203",
        title="Data-parallel training with separate statistics",
        severity="info",
        what=(
            "The model is wrapped for training on several processes, and each normalises its own part of the batch. It "
            "is a *warning* where a part is known to have fewer than sixteen values per channel."
        ),
        why=(
            "Only gradients are averaged over the processes. What BatchNorm sees is the batch of one process. With "
            "large parts that is fine, and often what one wants; with small ones the statistics are noise."
        ),
        seen="The wrapper, and layers of a class that does not synchronise.",
        misses=(
            "Frameworks that run several processes without wrapping the model. Gradient accumulation, which is alike."
        ),
        cure='`bnlearn.replace(model, "sync")` before wrapping the model; or a normaliser that needs no batch.',
        example="""\
import bnlearn
import torch

torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.BatchNorm1d(16), torch.nn.ReLU())
parallel = torch.nn.parallel.DistributedDataParallel(model)

report = bnlearn.audit(parallel)
torch.distributed.destroy_process_group()
""",
        threads=(("gradient accumulation is not a larger batch", "open-mmlab/mmcv/issues/1869"),),
    ),
    Rule(
        code="BN204",
        title="`training=False` in the graph is overruled by fit",
        severity="warning",
        what="A Keras graph calls the layer, or a model that it is in, with `training=False`; and yet it will train.",
        why=(
            "`base(x, training=False)` was the way to keep a pretrained network's statistics while its weights are "
            "tuned. In Keras 3 the `training=True` that `fit` passes goes to every layer of a functional model, "
            "whatever its graph says. The statistics move, and batches normalise; only `trainable=False` prevents that."
        ),
        seen=(
            "The arguments that the graph holds, for layers that are trainable; with data, also whether "
            "`training=True` arrives."
        ),
        misses=(
            "`training=False` in the `call` of a model of your own: it works there. A loop of your own that never "
            "passes `training=True` is not known without data; there, ignore the finding."
        ),
        cure=(
            "`bnlearn.freeze(model, layers=[...])`; or `trainable = False` for the BatchNorm layers, and then "
            "`compile` again."
        ),
        example="""\
import bnlearn
import keras

base = keras.Sequential(
    [keras.Input((8,)), keras.layers.Dense(16), keras.layers.BatchNormalization(), keras.layers.ReLU()]
)
inputs = keras.Input((8,))
outputs = keras.layers.Dense(2)(base(inputs, training=False))  # "its statistics stay"
model = keras.Model(inputs, outputs)

report = bnlearn.audit(model)
""",
        threads=(("what the guide to fine-tuning said", "keras-team/keras/issues/20285"),),
    ),
)

SETUP = (
    Rule(
        code="BN401",
        title="Weight decay pulls on gamma and beta",
        severity="info",
        needs="optimizer",
        what="The optimizer applies weight decay to the scale and shift of the layer.",
        why=(
            "Decay on a weight before BatchNorm changes no output, only the effective learning rate. Decay on gamma "
            "and beta does change the outputs: it pulls scales to 0. Most recipes leave both out; the difference is "
            "small, so this is an *info*."
        ),
        seen="The optimizer's groups, or in Keras its exclusions: which decay applies to gamma or beta.",
        misses="Penalties that are added to the loss by hand.",
        cure=(
            "A parameter group of their own with `weight_decay=0`; in Keras `optimizer.exclude_from_weight_decay(...)`."
        ),
        example="""\
import bnlearn
import torch

model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.BatchNorm1d(16), torch.nn.ReLU())
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)  # all in one group

report = bnlearn.audit(model, optimizer=optimizer)
""",
        threads=(("which parameters should decay?", "ultralytics/yolov5/issues/4104"),),
    ),
    Rule(
        code="BN402",
        title="The axis is not the channels'",
        severity="error",
        what="A Keras layer keeps an axis that does not hold the channels.",
        why=(
            "`axis` names the axis that is *kept*: each of its positions gets its own mean, variance, gamma and beta. "
            "With `axis=1` on channels-last images, that is one set for each row of pixels. It runs, trains a little, "
            "and leaves stripes."
        ),
        seen=(
            "The layer's axis against the data format of the convolution that it follows, and the shape it was built "
            "for. On images that come from no layer: against that of the convolution that it feeds, in a graph of "
            "layers."
        ),
        misses="Other layers that follow no convolution or pooling: the audit cannot know what their axes mean.",
        cure="`axis=-1`, the default, for channels last; `axis=1` for channels first.",
        example="""\
import bnlearn
import keras

model = keras.Sequential(
    [keras.Input((16, 16, 3)), keras.layers.Conv2D(8, 3), keras.layers.BatchNormalization(axis=1), keras.layers.ReLU()]
)

report = bnlearn.audit(model)
""",
        threads=(
            ("the axis is the one that is kept", "keras-team/keras/issues/13463"),
            ("stripes in the predictions", "keras-team/keras/issues/1921"),
        ),
    ),
    Rule(
        code="BN403",
        title="The optimizer does not hold gamma and beta",
        severity="warning",
        needs="optimizer",
        what="Gamma and beta take gradients, but the optimizer never updates them, while the statistics move.",
        why=(
            "It is half frozen, by another way than BN201. Either the layer was made after the optimizer, as when a "
            "head is exchanged, and is to be trained; or it was to be frozen, and its statistics drift."
        ),
        seen="Which of the model's parameters the optimizer's groups hold.",
        misses="A second optimizer: give the audit the one that holds the layer, or ignore the finding.",
        cure=(
            "Make the optimizer after the model is complete; or freeze the layer: `bnlearn.freeze(model, "
            "layers=[...])`."
        ),
        example="""\
import bnlearn
import torch

model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.BatchNorm1d(16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
optimizer = torch.optim.SGD(model[3].parameters(), lr=0.1)  # "only the head is trained"

report = bnlearn.audit(model, optimizer=optimizer)
""",
    ),
    Rule(
        code="BN404",
        title="`trainable` was changed after compile",
        severity="warning",
        what="The layer's `trainable` was changed after Keras had compiled the step that trains the model.",
        why=(
            "`fit` goes on with the step that it compiled first. A layer that was frozen since then still learns, and "
            "its statistics still move; one that was unfrozen stands still. `summary` shows what was set, not what is "
            "done. A batch of another shape may compile the step anew, and then raise."
        ),
        seen="The variables that the compiled model's optimizer was built for, against those that are trainable now.",
        misses=(
            "Layers without gamma and beta, and models around this one. Two models may share layers on purpose, as in "
            "a GAN whose discriminator was compiled before it is set to `trainable=False`: there, ignore the finding."
        ),
        cure="`model.compile(...)` again, after every change of `trainable`.",
        example="""\
import bnlearn
import keras
import numpy as np

model = keras.Sequential([keras.Input((8,)), keras.layers.BatchNormalization(), keras.layers.Dense(1)])
model.compile("sgd", "mse")
x = np.random.default_rng(0).normal(size=(64, 8))
model.fit(x, x[:, :1], verbose=0)
model.layers[0].trainable = False  # "frozen from here on"

report = bnlearn.audit(model)
""",
        threads=(
            ("compile again after any change", "keras-team/keras/issues/6405"),
            ("a warning that Keras was to give", "keras-team/keras/pull/22413"),
        ),
    ),
)
