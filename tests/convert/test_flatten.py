"""The dense layer after a Flatten: its inputs come in another order, or it is refused; never silently wrong."""

from __future__ import annotations

import numpy as np
import pytest

from bnlearn.convert import transfer

torch = pytest.importorskip("torch")
keras = pytest.importorskip("keras")
nn, L = torch.nn, keras.layers
SHAPE = (4, 5, 3)  # Keras's: height, width, channels


def torch_head(*between, features=60):
    return nn.Sequential(nn.Flatten(), *between, nn.Linear(features, 2))


def keras_head(*between, shape=SHAPE, last=None):
    return keras.Sequential([keras.Input(shape), *(between or (L.Flatten(),)), L.Dense(2, name="head")])


def same(tools, rng, ours, theirs, x=None):
    """Whether both give the same after a move (without an example, which would refuse what is wrong)."""
    tools.randomise(ours, 0)
    x = rng.standard_normal((2, *theirs.input_shape[1:])).astype(np.float32) if x is None else x
    transfer(ours, theirs)
    y = ours.eval()(torch.tensor(np.moveaxis(x, -1, 1))).detach().numpy()
    there = theirs(x, training=False).numpy()
    back = tools.torch_state(ours)
    transfer(theirs, tools.randomise(ours, 1))
    return np.allclose(y, there, atol=1e-5) and tools.torch_state(ours) == back


class TestFollowed:
    """Through a graph, the order is found."""

    def test_flatten(self, tools, rng):
        assert same(tools, rng, torch_head(), keras_head())

    def test_reshape(self, tools, rng):
        assert same(tools, rng, torch_head(), keras_head(L.Reshape((-1,))))

    def test_norms_and_activations_in_between(self, tools, rng):
        ours = torch_head(nn.BatchNorm1d(60), nn.PReLU(60), nn.Dropout(), nn.LayerNorm(60))
        between = (L.Flatten(), L.BatchNormalization(), L.PReLU(), L.Dropout(0.5), L.LayerNormalization(), L.Flatten())
        assert same(tools, rng, ours, keras_head(*between))

    def test_sequence_of_a_convolution(self, tools, rng):
        ours = nn.Sequential(nn.Conv1d(3, 4, 2), nn.ReLU(), torch_head(features=20))
        theirs = keras_head(L.Conv1D(4, 2), L.ReLU(), L.Flatten(), shape=(6, 3))
        assert same(tools, rng, ours, theirs)

    def test_inside_a_model_inside_a_model(self, tools, rng):
        inner = keras.Sequential([keras.Input(SHAPE), L.Conv2D(4, 2), L.Flatten()])
        theirs = keras.Sequential([keras.Input(SHAPE), inner, keras.Sequential([L.ReLU(), L.Dense(2)])])
        theirs.build((None, *SHAPE))
        ours = nn.Sequential(nn.Conv2d(3, 4, 2), nn.Flatten(), nn.ReLU(), nn.Linear(48, 2))
        assert same(tools, rng, ours, theirs)

    def test_after_one_position_or_one_channel_nothing_moves(self, tools, rng):
        pooled = nn.Sequential(nn.AvgPool2d((4, 5)), torch_head(features=3))
        assert same(tools, rng, pooled, keras_head(L.AveragePooling2D((4, 5)), L.Flatten()))
        pooled = nn.Sequential(nn.AvgPool2d((4, 5)), torch_head(features=3))
        assert same(tools, rng, pooled, keras_head(L.GlobalAveragePooling2D(), L.Reshape((1, 1, 3)), L.Flatten()))
        assert same(tools, rng, torch_head(features=20), keras_head(shape=(4, 5, 1)))

    def test_branches(self, tools, rng):
        class Branches(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv, self.head = nn.Conv2d(3, 3, 1), nn.Linear(183, 2)

            def forward(self, x):
                flat, other = x.flatten(1), self.conv(x).flatten(1)
                return self.head(torch.cat([flat + other, x.mean((2, 3)), torch.relu(other), flat], 1))

        inputs = keras.Input(SHAPE)
        flat, other = L.Flatten()(inputs), L.Flatten()(L.Conv2D(3, 1)(inputs))
        parts = [L.Add()([flat, other]), L.GlobalAveragePooling2D()(inputs), L.ReLU()(other), flat]
        theirs = keras.Model(inputs, L.Dense(2)(L.Concatenate()(parts)))
        assert same(tools, rng, Branches(), theirs)

    def test_channels_first(self, tools, rng):
        """A Keras model in PyTorch's layout, where Flatten with its own data_format moves the channels itself."""
        x = rng.standard_normal((2, 3, 4, 5)).astype(np.float32)
        for data_format in ("channels_first", "channels_last"):
            body = (L.ZeroPadding2D(0, data_format="channels_first"), L.Flatten(data_format=data_format))
            theirs = keras_head(*body, shape=(3, 4, 5))
            ours = tools.randomise(torch_head(), 0)
            assert transfer(ours, theirs, example=x).max_difference < 1e-5

    def test_sequences_are_the_same_in_both(self, tools, rng):
        class Last(nn.Module):
            def __init__(self):
                super().__init__()
                self.rnn, self.head = nn.LSTM(3, 5, batch_first=True), nn.Linear(20, 2)

            def forward(self, x):
                return self.head(self.rnn(x)[0].flatten(1))

        theirs = keras_head(L.LSTM(5, return_sequences=True), L.Flatten(), shape=(4, 3))
        x = rng.standard_normal((2, 4, 3)).astype(np.float32)
        assert transfer(tools.randomise(Last(), 0), theirs, example=x).max_difference < 1e-5


class Subclassed(keras.Model):
    def __init__(self, *steps):
        super().__init__()
        self.steps = steps

    def call(self, x):
        for step in self.steps:
            x = step(x)
        return x


UNCLEAR = {
    "features without channels": lambda: keras_head(shape=(12, 5)),
    "axes moved": lambda: keras_head(L.Permute((3, 1, 2)), L.Flatten()),
    "unknown layer": lambda: keras_head(L.Flatten(), L.Lambda(lambda x: x)),
    "unknown flattening": lambda: keras_head(L.Lambda(lambda x: keras.ops.reshape(x, (-1, 60)), output_shape=(60,))),
    "not a graph": lambda: Subclassed(L.Conv2D(3, 1), L.Flatten(), L.Dense(2, name="head")),
    "not a graph, no convolution": lambda: Subclassed(L.Flatten(), L.Dense(2, name="head")),
    "not a graph, depthwise": lambda: Subclassed(L.DepthwiseConv2D(1), L.Flatten(), L.Dense(2, name="head")),
}


@pytest.mark.parametrize("case", UNCLEAR)
def test_unclear_is_refused(tools, case):
    theirs = UNCLEAR[case]()
    theirs(np.zeros((2, *(SHAPE if case.startswith("not") else theirs.input_shape[1:])), np.float32))
    before = tools.keras_state(theirs)
    with pytest.raises(ValueError, match=r"target layer 'head' \(Dense\).*state flatten=\{'head': \(C, \*spatial\)\}"):
        transfer(torch_head(), theirs)
    assert tools.keras_state(theirs) == before


def test_used_twice_in_two_orders_is_refused(tools):
    inputs, first = keras.Input(SHAPE), keras.Input((60,))
    head = L.Dense(2, name="head")
    theirs = keras.Model([inputs, first], L.Add()([head(L.Flatten()(inputs)), head(first)]))
    with pytest.raises(ValueError, match="target layer 'head'"):
        transfer(torch_head(), theirs)


def test_orders_that_differ_cannot_be_added(tools):
    inputs = keras.Input(SHAPE)
    moved = L.Flatten()(L.Conv2D(3, 1)(inputs))
    theirs = keras.Model(inputs, L.Dense(2, name="head")(L.Add()([moved, L.Dense(60)(moved)])))
    ours = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Linear(60, 60), nn.Linear(60, 2))
    with pytest.raises(ValueError, match="target layer 'head'"):
        transfer(ours, theirs)


class TestUnfolded:
    """Features made into images (a generator): now it is the output of the dense layer that is permuted."""

    @staticmethod
    def generators(shape=(4, 5, 3)):
        between = [L.Dense(60, name="dense"), L.BatchNormalization(), L.ReLU()]
        theirs = keras.Sequential([keras.Input((7,)), *between, L.Reshape(shape)])
        return nn.Sequential(nn.Linear(7, 60), nn.BatchNorm1d(60), nn.ReLU(), nn.Unflatten(1, (3, 4, 5))), theirs

    @pytest.mark.parametrize("nested", [False, True])
    def test_generator(self, tools, rng, nested):
        ours, theirs = self.generators()
        inputs = keras.Input((7,))
        body = theirs.layers
        x = body[1](body[0](inputs)) if not nested else keras.Sequential([keras.Input((7,)), *body[:2]])(inputs)
        x = L.Conv2DTranspose(2, 3)(body[3](body[2](x)))
        theirs, ours = keras.Model(inputs, x), nn.Sequential(*ours, nn.ConvTranspose2d(3, 2, 3))
        x = rng.standard_normal((2, 7)).astype(np.float32)
        transfer(tools.randomise(ours, 0), theirs)
        y = ours.eval()(torch.tensor(x)).detach().permute(0, 2, 3, 1)
        np.testing.assert_allclose(theirs(x), y, atol=1e-5)
        before = tools.torch_state(ours)
        transfer(theirs, tools.randomise(ours, 1))
        assert tools.torch_state(ours) == before

    def test_and_flattened_again(self, tools, rng):
        ours, theirs = self.generators()
        theirs = keras.Sequential([*theirs.layers, L.Conv2D(3, 1), L.Flatten(), L.Dense(2)])
        theirs.build((None, 7))
        ours = nn.Sequential(*ours, nn.Conv2d(3, 3, 1), nn.Flatten(), nn.Linear(60, 2))
        x = rng.standard_normal((2, 7)).astype(np.float32)
        assert transfer(tools.randomise(ours, 0), theirs, example=x).max_difference < 1e-5

    def test_one_position_is_no_image(self, tools, rng):
        """The squeeze and excite of many networks."""
        ours, theirs = nn.Sequential(nn.Linear(7, 60)), keras.Sequential([keras.Input((7,)), L.Dense(60)])
        theirs.add(L.Reshape((1, 1, 60)))
        transfer(tools.randomise(ours, 0), theirs)
        np.testing.assert_array_equal(theirs.layers[0].kernel.numpy().T, ours[0].weight.detach())

    def test_unclear(self, tools):
        _, sequence = self.generators((20, 3))
        inputs = keras.Input((7,))
        x = L.Dense(60, name="dense")(inputs)
        twice = keras.Model(inputs, [L.Dense(1)(x), L.Reshape((4, 5, 3))(x)])
        subclass = Subclassed(L.Dense(60, name="dense"), L.Reshape((4, 5, 3)))
        subclass(np.zeros((2, 7), np.float32))
        for theirs in (sequence, twice, subclass):
            before = tools.keras_state(theirs)
            with pytest.raises(
                ValueError, match=r"'dense' \(Dense\): its output is made into.*flatten=\{'dense': None\}"
            ):
                transfer(nn.Linear(7, 60), theirs)
            assert tools.keras_state(theirs) == before
        transfer(nn.Linear(7, 60), subclass, flatten={"dense": None})

    def test_no_graph_and_nothing_to_permute(self, tools):
        """What comes in is made into an image, and the convolution is as wide as the layer after it."""
        theirs = Subclassed(L.Reshape((4, 5, 3)), L.Conv2D(6, 1), L.BatchNormalization())
        theirs(np.zeros((2, 60), np.float32))
        ours = nn.Sequential(nn.Unflatten(1, (3, 4, 5)), nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6))
        transfer(tools.randomise(ours, 0), theirs)
        np.testing.assert_array_equal(theirs.steps[2].gamma, ours[2].weight.detach())


class TestStated:
    def test_the_shape(self, tools, rng):
        theirs = Subclassed(L.Flatten(), L.BatchNormalization(name="bn"), L.Dense(2, name="head"))
        x = rng.standard_normal((2, *SHAPE)).astype(np.float32)
        theirs(x)
        ours = tools.randomise(torch_head(nn.BatchNorm1d(60)), 0)
        with pytest.raises(ValueError, match="'bn'"):
            transfer(ours, theirs, flatten={"head": (3, 4, 5)})
        report = transfer(ours, theirs, flatten={"head": (3, 4, 5), "bn": (3, 4, 5)}, example=np.moveaxis(x, -1, 1))
        assert report.max_difference < 1e-5

    def test_none_for_alike(self, tools, rng):
        ours, theirs = tools.randomise(torch_head(), 0), keras_head(shape=(12, 5))
        x = rng.standard_normal((2, 12, 5)).astype(np.float32)
        assert transfer(ours, theirs, flatten={"head": None}, example=x).max_difference < 1e-5
        with pytest.raises(ValueError, match="on the example the outputs differ"):
            transfer(ours, theirs, flatten={"head": (5, 12)}, example=x)

    def test_not_needed_after_pooling(self, tools, rng):
        """In a subclass a dense layer as wide as the convolution before it has seen no more than one position."""
        theirs = Subclassed(L.Conv2D(6, 1), L.GlobalAveragePooling2D(), L.Dense(2))
        x = rng.standard_normal((2, *SHAPE)).astype(np.float32)
        theirs(x)
        ours = nn.Sequential(nn.Conv2d(3, 6, 1), nn.AvgPool2d((4, 5)), nn.Flatten(), nn.Linear(6, 2))
        assert transfer(tools.randomise(ours, 0), theirs, example=np.moveaxis(x, -1, 1)).max_difference < 1e-5

    @pytest.mark.parametrize(
        ("flatten", "message"),
        [
            ({"tail": (3, 4, 5)}, r"no|flatten.*'tail'.*'head'"),
            ({"head": (3, 4, 6)}, r"\(3, 4, 6\).*72.*60"),
        ],
        ids=["no such layer", "wrong size"],
    )
    def test_wrong(self, tools, flatten, message):
        theirs = keras_head()
        before = tools.keras_state(theirs)
        with pytest.raises(ValueError, match=message):
            transfer(torch_head(), theirs, flatten=flatten)
        assert tools.keras_state(theirs) == before

    def test_only_for_keras(self):
        with pytest.raises(ValueError, match="only where one side is a Keras model"):
            transfer(torch_head(), torch_head(), flatten={"1": (3, 4, 5)})
        with pytest.raises(ValueError, match="only where one side is a Keras model"):
            transfer(keras_head(), keras_head(), flatten={"head": (3, 4, 5)})
