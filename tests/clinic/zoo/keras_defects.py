"""Keras models with one defect each."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers

from ._case import Case, Entry, register
from ._keras import bn, conv1d, convnet, cut, digits, features, images, mlp, seeded, settle, train, waves

ENTRIES: list[Entry] = []
defect = register(ENTRIES, "keras", seeded)


@defect("BN101")
def nan_batch(seed: int) -> Case:
    data = cut(*digits())
    model = train(convnet(), data)
    model(np.where(data[0][0] > 1, np.nan, data[0][0]), training=True)
    return Case(model, data, "bn1")


@defect("BN101")
def empty_batch(seed: int) -> Case:
    """A filter left nothing of a batch; Keras takes the mean of nothing."""
    data = cut(*features())
    model = train(mlp(16, 24, 24, 4), data)
    model(data[0][0][:0], training=True)
    return Case(model, None, "bn2")


@defect("BN102")
def target_network_of_trainable_variables(seed: int) -> Case:
    data = cut(*features())
    online, target = train(mlp(16, 32, 32, 4), data), mlp(16, 32, 32, 4)
    for ours, theirs in zip(target.trainable_variables, online.trainable_variables, strict=True):
        ours.assign(theirs)
    return Case(target, data, "bn1")


@defect("BN102")
def trained_without_training_true(seed: int) -> Case:
    """A loop of one's own that calls ``model(x)``."""
    x, y = digits()
    model = convnet()
    for variable in model.trainable_variables:
        variable.assign_add(0.05 * keras.random.normal(variable.shape, seed=seed))
    return Case(model, cut(x, y), "bn2")


@defect("BN103")
def momentum_one(seed: int) -> Case:
    return Case(train(conv1d(momentum=1.0), cut(*waves()), settled=False), None, "bn1")


@defect("BN104")
def momentum_from_pytorch(seed: int) -> Case:
    data = cut(*digits())
    return Case(train(convnet(momentum=0.1), data, settled=False), data, "bn2")


@defect("BN105")
def returns_per_second(seed: int) -> Case:
    """Inputs of 1e-4, and Keras's epsilon of 1e-3."""
    x, y = features()
    data = cut(1e-4 * x, y)
    model = keras.Sequential([keras.Input((16,)), bn(1), layers.Dense(16, "relu"), layers.Dense(4)])
    return Case(train(model, data), data, "bn1")


@defect("BN105")
def small_initialisation(seed: int) -> Case:
    """Weights of 1e-4, audited in the warm-up of the learning rate.

    Later it would be too late: the gradient goes through a division by a small number, so the smaller the weights, the
    larger their steps. At a rate of 1e-3 six of them raise the variance some hundred times.
    """
    x, y = images()
    model = keras.Sequential([keras.Input((12, 12, 3))])
    for layer in (layers.Conv2D(8, 3, kernel_initializer=keras.initializers.RandomNormal(0, 1e-4)), bn(1)):
        model.add(layer)
    for layer in (layers.ReLU(), layers.GlobalAveragePooling2D(), layers.Dense(4)):
        model.add(layer)
    return Case(train(model, cut(x, y), lr=1e-5), cut(x, y), "bn1")


@defect("BN106")
def pure_float16(seed: int) -> Case:
    model = train(mlp(16, 32, 4), cut(*features()))
    half = mlp(16, 32, 4, dtype="float16")
    half.set_weights(model.get_weights())
    return Case(half, None, "bn1")


@defect("BN107")
def convolution_with_a_bias(seed: int) -> Case:
    data = cut(*images())
    model = keras.Sequential([keras.Input((12, 12, 3)), layers.Conv2D(8, 3), bn(1), layers.ReLU(), layers.Flatten()])
    model.add(layers.Dense(4))
    return Case(train(model, data), data, "bn1")


@defect("BN107")
def dense_with_a_bias(seed: int) -> Case:
    data = cut(*features())
    inputs = keras.Input((16,))
    x = layers.Activation("gelu")(bn(1)(layers.Dense(24)(inputs)))
    return Case(train(keras.Model(inputs, layers.Dense(4)(x)), data), data, "bn1")


@defect("BN108")
def diverged(seed: int) -> Case:
    data = cut(*features())
    model = train(mlp(16, 24, 4), data)
    train(model, data[:1], 1, lr=float("inf"), settled=False)
    return Case(model, None, "bn1")


class AlwaysTraining(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = layers.Dense(24, use_bias=False), layers.Dense(24), layers.Dense(4)
        self.bn1, self.bn2 = bn(1), bn(2)

    def call(self, x: Any, training: bool = False) -> Any:
        x = keras.ops.relu(self.bn1(self.first(x), training=training))
        return self.head(keras.ops.relu(self.bn2(self.second(x), training=True)))


@defect("BN301")
def training_true_in_call(seed: int) -> Case:
    data = cut(*features())
    return Case(train(AlwaysTraining(), data), data, "bn2")


class Forgotten(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = layers.Dense(24), layers.Dense(24), layers.Dense(4)
        self.bn1, self.bn2 = bn(1), bn(2)
        self.bn2.build((None, 24))

    def call(self, x: Any, training: bool = False) -> Any:
        x = keras.ops.relu(self.bn1(self.first(x), training=training))
        return self.head(keras.ops.relu(self.second(x)))


@defect("BN302")
def forgotten_in_call(seed: int) -> Case:
    data = cut(*features())
    return Case(train(Forgotten(), data, 2), data, "bn2")


@defect("BN303")
def twins_of_two_domains(seed: int) -> Case:
    data = cut(*digits())
    inputs, tower = keras.Input((8, 8, 1)), convnet(classes=8)
    tower.name = "tower"
    sketch = layers.Rescaling(0.2, 2.0)(inputs)
    model = keras.Model(inputs, layers.Dense(10)(layers.Subtract()([tower(inputs), tower(sketch)])))
    return Case(train(model, data, lr=0.01), data, "tower/bn1")


@defect("BN303")
def head_shared_over_levels(seed: int) -> Case:
    data = cut(*images())
    x, levels = keras.Input((12, 12, 3)), []
    inputs, shared, project = x, bn(1), layers.Conv2D(8, 1, use_bias=False)
    for scale in (1.0, 6.0):
        x = layers.Conv2D(8, 3, 2, padding="same", activation="relu")(x)
        x = layers.Rescaling(scale)(x)
        levels.append(layers.GlobalAveragePooling2D()(shared(project(x))))
    model = keras.Model(inputs, layers.Dense(4)(layers.Add()(levels)))
    return Case(train(model, data, lr=0.01), data, "bn1")


@defect("BN304")
def batches_of_four(seed: int) -> Case:
    data = cut(*features(160), size=4)
    return Case(train(mlp(16, 24, 4), data), data, "bn1")


@defect("BN304")
def small_last_batch(seed: int) -> Case:
    data = cut(*features(32 * 8 + 3))
    return Case(train(mlp(16, 24, 24, 4), data), data, "bn2")


@defect("BN305")
def units_that_never_open(seed: int) -> Case:
    data = cut(*waves())
    convolution = layers.Conv1D(12, 3, activation="relu")
    model = keras.Sequential([keras.Input((24, 4)), convolution, bn(1), layers.GlobalMaxPooling1D(), layers.Dense(3)])
    convolution.bias.assign(np.where(np.arange(12) < 3, -100.0, 0.0))
    return Case(train(model, data), data, "bn1")


@defect("BN306")
def default_momentum_and_few_steps(seed: int) -> Case:
    """0.99 needs hundreds of steps; the validation loss swings."""
    x, y = features()
    data = cut(x, y)
    return Case(train(mlp(16, 32, 4, momentum=0.99), data, settled=False), data, "bn1")


@defect("BN306")
def pixels_up_to_255(seed: int) -> Case:
    x, y = images()
    return Case(train(convnet((12, 12, 3), classes=4), cut(x, y)), cut(255 * x, y), "bn1")


@defect("BN306")
def weights_of_another_model(seed: int) -> Case:
    """The trainable variables of a network for standardised waves, in one for raw waves."""
    x, y = waves()
    model, other = train(conv1d(), cut(x, y)), train(conv1d(), cut(8 * x, y))
    for ours, theirs in zip(model.trainable_variables, other.trainable_variables, strict=True):
        ours.assign(theirs)
    return Case(model, cut(8 * x, y), "bn1")


@defect("BN307")
def sorted_with_a_small_buffer(seed: int) -> Case:
    import tensorflow as tf

    x, y = features()
    order = np.argsort(y, kind="stable")
    model = train(mlp(16, 32, 4), cut(x, y))
    data = tf.data.Dataset.from_tensor_slices((x[order], y[order])).shuffle(16, seed=seed).batch(32)
    return Case(model, data, "bn1")


@defect("BN307")
def one_recording_in_each_batch(seed: int) -> Case:
    x, y = waves()
    data = [
        (part + np.float32(level), label) for level, (part, label) in zip((0, 2, -1, 3, 1, -2), cut(x, y), strict=True)
    ]
    return Case(train(conv1d(), data), data, "bn1")


@defect("BN308")
def dropout_before_the_layer(seed: int) -> Case:
    data = cut(*features(512), size=64)
    model = keras.Sequential([keras.Input((16,)), layers.Dense(64, "relu"), layers.Dropout(0.5), bn(1)])
    model.add(layers.Dense(4))
    return Case(train(model, data), data, "bn1")


@defect("BN308")
def spatial_dropout(seed: int) -> Case:
    data = cut(*waves(384), size=64)
    model = keras.Sequential([keras.Input((24, 4)), layers.Conv1D(32, 5, activation="relu")])
    for layer in (layers.SpatialDropout1D(0.5), bn(1), layers.GlobalMaxPooling1D(), layers.Dense(3)):
        model.add(layer)
    return Case(train(model, data), data, "bn1")


@defect("BN309")
def evaluation_far_from_training(seed: int) -> Case:
    """A fine-tuned network: the pretrained statistics have hardly moved from ImageNet's, so to speak."""
    x, y = digits()
    model = train(convnet(momentum=0.99), cut(x, y))
    data = cut(4 * x + 6, y)
    return Case(train(model, data, lr=0.01, settled=False), data)


def _padded() -> tuple[list[tuple[Any, Any, Any]], list[tuple[Any, Any]]]:
    x, y = waves(256)
    length = np.random.default_rng(len(y)).integers(4, 24, (256, 1))
    real = np.arange(24) < length
    x = np.where(real[..., None], x + 2, 0).astype("float32")
    plain = cut(x, y)
    return [(*batch, mask) for batch, (mask, _) in zip(plain, cut(real, y), strict=True)], plain


@defect("BN310")
def padded_sequences(seed: int) -> Case:
    data, plain = _padded()
    return Case(train(conv1d(), plain), data, "bn1", mask=lambda batch: batch[2])


@defect("BN310")
def padded_at_the_input(seed: int) -> Case:
    data, plain = _padded()
    model = keras.Sequential([keras.Input((24, 4)), bn(1), layers.Conv1D(8, 3), layers.Flatten(), layers.Dense(3)])
    return Case(settle(model, [x for x, _ in plain]), data, "bn1", mask=2)


@defect("BN311")
def one_sample_left_over(seed: int) -> Case:
    data = cut(*features(32 * 8 + 1))
    return Case(train(mlp(16, 32, 32, 4), data[:-1]), data, "bn1")


@defect("BN312")
def missing_value(seed: int) -> Case:
    x, y = features()
    model = train(mlp(16, 32, 32, 4), cut(x, y))
    x[100, 2] = np.inf
    return Case(model, cut(x, y), "bn1")


@defect("BN401")
def decay_on_everything(seed: int) -> Case:
    data = cut(*digits())
    model, optimizer = convnet(), keras.optimizers.AdamW(1e-3, weight_decay=0.05)
    optimizer.build(model.trainable_variables)
    return Case(train(model, data, optimizer=optimizer), None, "bn1", optimizer)


@defect("BN402")
def rows_in_the_place_of_channels(seed: int) -> Case:
    """``axis=1`` from an example with channels first."""
    data = cut(*images())
    return Case(train(convnet((12, 12, 3), classes=4, axis=1), data), data, "bn1")


@defect("BN402")
def rows_of_the_input(seed: int) -> Case:
    """In front of everything, in the place of standardising the images."""
    model = keras.Sequential([keras.Input((12, 12, 3)), bn(1, axis=1), layers.Conv2D(8, 3, use_bias=False), bn(2)])
    for layer in (layers.ReLU(), layers.GlobalAveragePooling2D(), layers.Dense(4)):
        model.add(layer)
    return Case(train(model, cut(*images())), None, "bn1")


@defect("BN402")
def time_in_the_place_of_channels(seed: int) -> Case:
    return Case(train(conv1d(axis=1), cut(*waves())), None, "bn2")


@defect("BN403")
def only_the_head_in_the_optimizer(seed: int) -> Case:
    data = cut(*digits())
    model, optimizer = train(convnet(), data), keras.optimizers.Adam(1e-3)
    optimizer.build(model.layers[-1].trainable_variables)
    return Case(train(model, data, optimizer=optimizer), data, "bn1", optimizer)


@defect("BN204")
def base_told_not_to_train(seed: int) -> Case:
    """Fine-tuning of the whole network, "but BatchNorm stays in inference mode"."""
    data = cut(*digits())
    base = train(convnet(classes=16), data)
    base.name = "base"
    inputs = keras.Input((8, 8, 1))
    model = keras.Model(inputs, layers.Dense(10)(layers.ReLU()(base(inputs, training=False))))
    return Case(train(model, data, lr=0.01), data, "base/bn2")


@defect("BN204")
def layer_told_not_to_train(seed: int) -> Case:
    inputs = keras.Input((16,))
    x = layers.ReLU()(bn(1)(layers.Dense(24, use_bias=False)(inputs), training=False))
    return Case(train(keras.Model(inputs, layers.Dense(4)(x)), cut(*features())), None, "bn1")


def _fitted(model: Any) -> Any:
    x, y = features()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, y, verbose=0)
    return model


@defect("BN404")
def frozen_after_compile(seed: int) -> Case:
    model = _fitted(mlp(16, 24, 24, 4))
    model.get_layer("bn1").trainable = False
    return Case(model, None, "bn1")


@defect("BN404")
def unfrozen_after_compile(seed: int) -> Case:
    """First the head, then all of it, and nobody compiled the model again."""
    model = train(mlp(16, 24, 24, 4), cut(*features()))
    base = model.layers[:-1]
    for layer in base:
        layer.trainable = False
    _fitted(model)
    for layer in base:
        layer.trainable = True
    return Case(model, cut(*features()), "bn2")
