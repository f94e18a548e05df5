"""Keras's layers with normalised kernels, against PyTorch's parametrizations and the formulas."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest

from bnlearn.functional import weight_norm, weight_standardization

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what the frameworks deprecate among themselves is not under test
    keras = pytest.importorskip("keras")
    tf = pytest.importorskip("tensorflow")
torch = pytest.importorskip("torch")

from bnlearn.keras import WeightNormalization, WeightStandardization  # noqa: E402
from bnlearn.keras.weights import _KernelNormalization  # noqa: E402
from bnlearn.torch import weight_standardization as torch_standardization  # noqa: E402

# A Keras layer, its input, the axes of the filters, and PyTorch's twin with the kernel's axes in its order.
KINDS = {
    "dense": (
        lambda **o: keras.layers.Dense(4, **o),
        (5, 6),
        (-1,),
        lambda: torch.nn.Linear(6, 4),
        (1, 0),
    ),
    "convolution": (
        lambda **o: keras.layers.Conv2D(4, 2, **o),
        (2, 5, 5, 3),
        (-1,),
        lambda: torch.nn.Conv2d(3, 4, 2),
        (3, 2, 0, 1),
    ),
    "grouped convolution": (
        lambda **o: keras.layers.Conv1D(4, 2, groups=2, **o),
        (2, 5, 6),
        (-1,),
        lambda: torch.nn.Conv1d(6, 4, 2, groups=2),
        (2, 1, 0),
    ),
    "transposed convolution": (
        lambda **o: keras.layers.Conv2DTranspose(4, 2, **o),
        (2, 5, 5, 3),
        (-2,),
        lambda: torch.nn.ConvTranspose2d(3, 4, 2),
        (3, 2, 0, 1),
    ),
    "depthwise convolution": (
        lambda **o: keras.layers.DepthwiseConv2D(3, depth_multiplier=2, **o),
        (2, 5, 5, 3),
        (-2, -1),
        lambda: torch.nn.Conv2d(3, 6, 3, groups=3),
        None,
    ),
}
EACH = pytest.mark.parametrize("kind", KINDS)
WRAPPERS = {
    "weight norm": WeightNormalization,
    "standardization": WeightStandardization,
    "scaled, with gain": lambda layer, **o: WeightStandardization(layer, scaled=True, gain=True, **o),
}
EVERY = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)


def made(kind, wrap, rng, **options):
    """A built wrapper in float64 with random weights, and an input."""
    layer, shape, *_ = KINDS[kind]
    wrapped = wrap(layer(dtype="float64"), dtype="float64", **options)
    wrapped.build(shape)
    wrapped.set_weights([rng.uniform(0.5, 2, w.shape) * rng.choice([-1, 1], w.shape) for w in wrapped.weights])
    return wrapped, rng.standard_normal(shape)


def parts(wrapped):
    """The gain (g) and the kernel that are learnt."""
    own = [w for w in wrapped.weights if w.path.endswith(("/g", "/gain"))]
    return (own[0].numpy() if own else None), wrapped.layer.kernel.numpy()


def formula(wrapped, dim):
    gain, kernel = parts(wrapped)
    if isinstance(wrapped, WeightNormalization):
        return weight_norm(kernel, gain, dim=dim)[0]
    return weight_standardization(kernel, gain, scaled=wrapped.scaled, dim=dim, eps=wrapped.epsilon)[0]


@EVERY
@EACH
def test_computes_with_the_formula_s_kernel(kind, wrap, rng):
    wrapped, x = made(kind, wrap, rng)
    expected = formula(wrapped, KINDS[kind][2])
    np.testing.assert_allclose(wrapped.kernel.numpy(), expected, rtol=1e-12)
    y, kernel = wrapped(x).numpy(), wrapped.layer.kernel.numpy()
    assert not np.allclose(kernel, expected)
    plain = KINDS[kind][0](dtype="float64")
    plain.build(x.shape)
    plain.set_weights([expected, wrapped.layer.bias.numpy()])
    np.testing.assert_allclose(y, plain(x).numpy(), rtol=1e-12)
    np.testing.assert_array_equal(wrapped.layer.kernel.numpy(), kernel)
    assert wrapped.compute_output_shape(x.shape) == y.shape


@EVERY
@EACH
def test_outputs_and_gradients_as_in_torch(kind, wrap, rng):
    """Each filter has the fan-in that it has there, also where the kernel's axes are in another order."""
    *_, twin, order = KINDS[kind]
    wrapped, x = made(kind, wrap, rng)
    gain, kernel = parts(wrapped)
    transposed = kind.startswith("transposed")

    def there(array):
        if order is None:  # depthwise: (*kernel, in, multiplier) to (in * multiplier, 1, *kernel)
            return array.transpose(2, 3, 0, 1).reshape(-1, 1, *array.shape[:2])
        return array.transpose(order)

    module = twin().double()
    if isinstance(wrapped, WeightNormalization):
        torch.nn.utils.parametrizations.weight_norm(module, dim=1 if transposed else 0)
        factor = module.parametrizations.weight.original0
        original = module.parametrizations.weight.original1
    else:
        torch_standardization(module, scaled=wrapped.scaled, gain=gain is not None)
        factor = module.parametrizations.weight[0].gain
        original = module.parametrizations.weight.original
    with torch.no_grad():
        module.bias.copy_(torch.tensor(wrapped.layer.bias.numpy()))
        original.copy_(torch.tensor(there(kernel)))
        if gain is not None:
            factor.copy_(torch.tensor(gain.reshape(factor.shape)))
    images = torch.tensor(np.moveaxis(x, -1, 1))
    y = module(images)
    dy = rng.standard_normal(tuple(y.shape))
    y.backward(torch.tensor(dy))
    with tf.GradientTape() as tape:
        ours = wrapped(x)
        loss = tf.reduce_sum(ours * np.moveaxis(dy, 1, -1))
    np.testing.assert_allclose(np.moveaxis(ours.numpy(), -1, 1), y.detach().numpy(), rtol=1e-10, atol=1e-10)
    learnt = wrapped.trainable_weights
    found = tape.gradient(loss, [w.value for w in learnt])
    grads = {w.path.split("/")[-1]: gradient for w, gradient in zip(learnt, found, strict=True)}
    np.testing.assert_allclose(there(grads["kernel"].numpy()), original.grad.numpy(), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(grads["bias"].numpy(), module.bias.grad.numpy(), rtol=1e-9, atol=1e-9)
    if gain is not None:
        name = "g" if isinstance(wrapped, WeightNormalization) else "gain"
        np.testing.assert_allclose(grads[name].numpy().ravel(), factor.grad.numpy().ravel(), rtol=1e-9, atol=1e-9)


@EACH
def test_weight_norm_starts_as_the_layer(kind):
    layer, shape, *_ = KINDS[kind]
    layer = layer(dtype="float64", bias_initializer="random_normal")
    wrapped = WeightNormalization(layer, dtype="float64")
    x = np.random.default_rng(0).standard_normal(shape)
    y = wrapped(x).numpy()
    np.testing.assert_allclose(y, layer(x).numpy(), rtol=1e-12, atol=1e-12)
    assert (parts(wrapped)[0] > 0).all()
    after = WeightNormalization(layer, dtype="float64")  # the same around a layer that is built already
    np.testing.assert_allclose(after(x).numpy(), y, rtol=1e-12, atol=1e-12)


def test_standardization_starts_with_gain_one_and_scaled_at_variance_one_over_fan_in(rng):
    layer = WeightStandardization(keras.layers.Conv2D(4, 3), scaled=True, gain=True)
    layer(rng.standard_normal((2, 5, 5, 6)))
    np.testing.assert_array_equal(parts(layer)[0], np.ones(4))
    np.testing.assert_allclose((layer.kernel.numpy() ** 2).sum(axis=(0, 1, 2)), 1, rtol=1e-3)
    assert [w.path.split("/")[-1] for w in layer.weights] == ["gain", "kernel", "bias"]
    without = WeightStandardization(keras.layers.Conv2D(4, 3))
    without(rng.standard_normal((2, 5, 5, 6)))
    np.testing.assert_allclose(without.kernel.numpy().std(axis=(0, 1, 2)), 1, rtol=1e-3)
    assert [w.path.split("/")[-1] for w in without.weights] == ["kernel", "bias"]


def test_axis(rng):
    for axis in (0, -2, (0, 1), [1]):
        dim = tuple(axis) if isinstance(axis, list) else axis
        for wrap in WRAPPERS.values():
            wrapped, _ = made("convolution", wrap, rng, axis=axis)
            np.testing.assert_allclose(wrapped.kernel.numpy(), formula(wrapped, dim), rtol=1e-12)
            copy = type(wrapped).from_config(wrapped.get_config())
            assert copy.axis == dim
    wrapped = WeightNormalization(keras.layers.EinsumDense("abc,cd->abd", (None, 4)), axis=-1)
    assert wrapped(rng.standard_normal((2, 3, 5))).shape == (2, 3, 4)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras's own, when it saves
@EVERY
@EACH
def test_saves_and_loads(kind, wrap, rng, tmp_path):
    wrapped, x = made(kind, wrap, rng)
    model = keras.Sequential([keras.Input(x.shape[1:], dtype="float64"), wrapped])
    y = model(x).numpy()
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(x).numpy(), y)
    assert type(loaded.layers[0]) is type(wrapped)
    found, expected = loaded.layers[0].get_config(), wrapped.get_config()
    assert found.pop("layer")["class_name"] == expected.pop("layer")["class_name"]
    assert found == expected
    model.save_weights(tmp_path / "model.weights.h5")
    fresh = keras.models.clone_model(model)
    fresh.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(fresh(x).numpy(), y)


def test_config_keeps_every_argument():
    layer = WeightStandardization(
        keras.layers.Dense(3, use_bias=False), True, True, 0.25, (0,), name="mine", trainable=False
    )
    config = WeightStandardization.from_config(layer.get_config()).get_config()
    assert config == layer.get_config()
    assert {name: config[name] for name in ("scaled", "gain", "epsilon", "axis", "name", "trainable")} == {
        "scaled": True,
        "gain": True,
        "epsilon": 0.25,
        "axis": (0,),
        "name": "mine",
        "trainable": False,
    }
    plain = WeightStandardization(keras.layers.Dense(3)).get_config()
    assert (plain["scaled"], plain["gain"], plain["epsilon"], plain["axis"]) == (False, False, 1e-6, None)
    assert WeightNormalization(keras.layers.Dense(3)).get_config()["axis"] is None


@EVERY
def test_learns_in_fit_and_keeps_the_layer_s_penalties(wrap, rng):
    inside = keras.layers.Dense(3, kernel_regularizer=keras.regularizers.L2(0.5), activity_regularizer="l2")
    wrapped = wrap(inside)
    model = keras.Sequential([keras.Input((4,)), wrapped])
    model.compile(keras.optimizers.SGD(0.02), "mse")
    x, y = rng.standard_normal((16, 4)), rng.standard_normal((16, 3))
    before = wrapped.get_weights()
    losses = model.fit(x, y, epochs=5, batch_size=8, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert not any(np.array_equal(a, b) for a, b in zip(wrapped.get_weights(), before, strict=True))
    out = wrapped(x).numpy()
    kernel = inside.kernel.numpy()
    found = sorted(float(loss) for loss in wrapped.losses)
    np.testing.assert_allclose(found, sorted([0.5 * (kernel**2).sum(), 0.01 * (out**2).sum() / 16]), rtol=1e-5)


@EVERY
def test_tf_function_with_unknown_sizes(wrap, rng):
    wrapped, x = made("convolution", wrap, rng)
    traced = tf.function(wrapped, input_signature=[tf.TensorSpec((None, None, None, 3), tf.float64)])
    np.testing.assert_allclose(traced(x).numpy(), wrapped(x).numpy(), rtol=1e-12)
    wrapped.layer.kernel.assign(wrapped.layer.kernel + rng.standard_normal(wrapped.layer.kernel.shape))
    np.testing.assert_allclose(traced(x).numpy(), wrapped(x).numpy(), rtol=1e-12)


@EVERY
def test_mixed_precision_normalises_in_float32(wrap, rng):
    x = rng.standard_normal((8, 300)).astype(np.float32)
    wrapped = wrap(keras.layers.Dense(3, dtype="mixed_bfloat16"), dtype="mixed_bfloat16")
    assert wrapped(x).dtype == "bfloat16"
    assert {w.dtype for w in wrapped.weights} == {"float32"}
    # In half precision the deviations from 100 would be gone.
    wrapped.layer.kernel.assign(wrapped.layer.kernel + 100)
    assert wrapped.kernel.dtype == "float32"
    plain = wrap(keras.layers.Dense(3))
    plain.build(x.shape)
    plain.set_weights(wrapped.get_weights())
    scale = np.abs(plain(x).numpy()).max()
    outputs = tf.cast(wrapped(x), tf.float32).numpy()
    np.testing.assert_allclose(outputs, plain(x).numpy(), atol=0.02 * scale)
    given = keras.Input((300,))
    symbolic = keras.Model(given, wrapped(given))
    np.testing.assert_allclose(tf.cast(symbolic(x), tf.float32).numpy(), outputs, atol=1e-6 * scale)


class Counting(keras.layers.Dense):
    """A layer that keeps something of its own."""

    def build(self, input_shape):
        super().build(input_shape)
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False, name="calls")

    def call(self, inputs):
        self.calls.assign_add(1.0)
        return super().call(inputs)


def test_what_the_layer_inside_keeps_is_kept(rng):
    wrapped = WeightNormalization(Counting(3))
    for _ in range(2):
        wrapped(rng.standard_normal((2, 4)))
    assert wrapped.layer.calls.numpy() == 2
    kernel = wrapped.layer.kernel.numpy()
    wrapped.g.assign(2 * wrapped.g)
    wrapped.trainable = False  # the kernel is then among what is not learnt, and must not be overwritten
    wrapped(rng.standard_normal((2, 4)))
    assert wrapped.layer.calls.numpy() == 3
    np.testing.assert_array_equal(wrapped.layer.kernel.numpy(), kernel)


@EVERY
@EACH
def test_remove_leaves_the_function(kind, wrap, rng):
    wrapped, x = made(kind, wrap, rng)
    y = wrapped(x).numpy()
    plain = wrapped.remove()
    assert plain is wrapped.layer
    np.testing.assert_allclose(plain(x).numpy(), y, rtol=1e-12)


def test_masks_pass_through(rng):
    model = keras.Sequential([keras.layers.Masking(), WeightNormalization(keras.layers.Dense(3))])
    x = rng.standard_normal((2, 4, 3)).astype(np.float32)
    x[1, 2:] = 0
    assert np.array_equal(model(x)._keras_mask, [[True] * 4, [True, True, False, False]])
    assert not WeightNormalization(keras.layers.Lambda(lambda x: x)).supports_masking


def test_errors():
    with pytest.raises(ValueError, match="expected a layer with one kernel, a variable, got SeparableConv2D"):
        WeightNormalization(keras.layers.SeparableConv2D(3, 2)).build((None, 5, 5, 3))
    with pytest.raises(ValueError, match="expected axis, the outputs' in the kernel, for a layer of kind EinsumDense"):
        WeightNormalization(keras.layers.EinsumDense("ab,bc->ac", 4)).build((None, 3))
    with pytest.raises(ValueError, match=re.escape("got dim=2 for shape (3, 4)")):
        WeightStandardization(keras.layers.Dense(4), axis=2).build((None, 3))
    for epsilon in (-1.0, float("nan")):
        with pytest.raises(ValueError, match=f"expected epsilon >= 0, got epsilon={epsilon}"):
            WeightStandardization(keras.layers.Dense(4), epsilon=epsilon)


def test_a_subclass_says_how():
    bare = _KernelNormalization(keras.layers.Dense(4))
    with pytest.raises(NotImplementedError):
        bare.build((None, 3))
    with pytest.raises(NotImplementedError):
        bare.normalize(np.ones((3, 4)))
