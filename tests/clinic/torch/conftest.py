"""A portrait of a model and of the random states: what must be the same, bit by bit, after the clinic has looked."""

from __future__ import annotations

import random

import numpy as np
import pytest

torch = pytest.importorskip("torch")

CONTAINERS = (dict, list, set)


def _bytes(tensor):
    flat = tensor.detach().cpu().to_dense().contiguous().reshape(-1)
    return str(tensor.dtype), tuple(tensor.shape), flat.view(torch.uint8).numpy().tobytes()


def _entries(value):
    return [(key, id(entry)) for key, entry in value.items()] if isinstance(value, dict) else list(map(id, value))


def _module(module, versions):
    attributes = dict(vars(module))
    return {
        "class": type(module),
        "training": module.training,
        "attributes": [(name, id(value)) for name, value in attributes.items() if not isinstance(value, bool | float)],
        "flags": {name: value for name, value in attributes.items() if isinstance(value, bool | float)},
        "containers": {name: _entries(value) for name, value in attributes.items() if isinstance(value, CONTAINERS)},
        "buffers": {
            name: (id(b), versions and b._version, _bytes(b)) for name, b in module.named_buffers(recurse=False)
        },
        "parameters": {
            name: (
                id(p),
                versions and p._version,
                p.requires_grad,
                _bytes(p),
                p.grad if p.grad is None else (id(p.grad), _bytes(p.grad)),
            )
            for name, p in module.named_parameters(recurse=False)
        },
    }


@pytest.fixture
def portrait():
    """A function that takes a model to all there is to compare; ``versions``: also the number of writes."""

    def take(model, versions=True):
        return {
            "modules": {name: _module(module, versions) for name, module in model.named_modules()},
            "torch": torch.get_rng_state().numpy().tobytes(),
            "numpy": str(np.random.get_state()),  # noqa: NPY002 - other people's code uses it
            "random": random.getstate(),
            "gradients": torch.is_grad_enabled(),
        }

    return take


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
