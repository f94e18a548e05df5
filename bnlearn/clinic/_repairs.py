"""The repairs: each finds the part for the model's framework."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from bnlearn.clinic._dispatch import part
from bnlearn.clinic._repair import Repair

__all__ = ["fold", "freeze", "recalibrate", "replace"]


def recalibrate(
    model: Any,
    data: Any,
    *,
    layers: Collection[str] | None = None,
    one_pass: bool = False,
    progress: bool = True,
) -> Repair:
    """Replace running statistics by those of the data, exactly.

    Layer after layer, in the order of the calls: mean and variance over all the data of what arrives when the layers
    before have their new statistics already, in evaluation mode (without dropout). Batches may differ in size; sums
    are in float64. The variance follows the framework's convention (PyTorch: unbiased; Keras: biased). All or nothing:
    after an error, or Ctrl-C, the model is as before.

    Parameters
    ----------
    model : torch.nn.Module or keras.Model
    data : iterable of batches
        As :func:`bnlearn.clinic.audit` takes it, but one that can be read again, such as a list or a loader: it is
        read once for each layer.
    layers : collection of str, or None
        Names of the layers to do, frozen ones too; None: all that are used, keep running statistics, and are not
        frozen.
    one_pass : bool
        Take all the statistics from one reading of the data, in which the batch-norm layers alone are in training mode,
        and normalise each batch by itself. Faster, by a factor of the number of layers, and exact for the first layer
        only: what arrives at a later one is not quite what arrives at inference.
    progress : bool
        Whether to show a progress bar, where tqdm is installed.

    Returns
    -------
    Repair
        What was done, what was left alone and why, and the way back.

    Raises
    ------
    TypeError
        If the model is of neither framework, or ``data`` is not batches.
    ValueError
        If the data is empty, or can be read only once where it must be read again; if what arrives is not finite; or if
        a name is not a batch-norm layer's.

    Examples
    --------
    >>> import pytest
    >>> torch = pytest.importorskip("torch")
    >>> x = 5 + 3 * torch.randn(1000, 4)
    >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    >>> recalibrate(model, list(x.split(300)), progress=False)
    1 recalibrated: 0
    >>> torch.allclose(model[0].running_mean, x.mean(0)), torch.allclose(model[0].running_var, x.var(0))
    (True, True)
    """
    done: Repair = part(model, "recalibrate").recalibrate(
        model, data, layers=layers, one_pass=one_pass, progress=progress
    )
    return done


def freeze(model: Any, affine: bool = True, *, layers: Collection[str] | None = None) -> Repair:
    """Freeze batch-norm layers so that they stay so, through ``model.train()`` too.

    Parameters
    ----------
    model : torch.nn.Module or keras.Model
        Changed in place. In PyTorch it can still be copied, pickled and compiled, and its ``state_dict`` is the same.
    affine : bool
        Whether gamma and beta stand still as well as the statistics: no gradient reaches them, and an optimizer passes
        them by, with its momentum and its weight decay.
    layers : collection of str, or None
        Names of the layers to freeze; None: all.

    Returns
    -------
    Repair
        Its ``undo()`` gives everything back bit by bit; as a context manager it does so at the end.

    Raises
    ------
    TypeError
        If the model is of neither framework.
    ValueError
        If a name is not a batch-norm layer's, or a layer is not built yet; or if gamma and beta were to be frozen in a
        model that is in ``DistributedDataParallel`` already.

    Examples
    --------
    >>> import pytest
    >>> torch = pytest.importorskip("torch")
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    >>> with freeze(model) as frozen:
    ...     frozen, model.train()[1].training
    (1 frozen: 1, False)
    >>> model[1].training
    True
    """
    done: Repair = part(model, "freeze").freeze(model, affine, layers=layers)
    return done


def fold(model: Any, example: Any) -> Any:
    """Merge batch-norm layers into the linear and convolutional layers before them, for inference.

    What feeds what is found by running the example. A layer that cannot be folded exactly is left, with the reason: it
    is in training mode, or what arrives comes from something else, or is used elsewhere too.

    Parameters
    ----------
    model : torch.nn.Module or keras.Model
        In evaluation mode; it is not changed.
    example : tensor, tuple or dict
        What the model is called with: a tuple holds the arguments, a dictionary the keyword arguments. The folded model
        is verified on it.

    Returns
    -------
    torch.nn.Module or keras.Model
        A new model. Its attribute ``folding`` says what was folded, what was left and why, and the error on the
        example.

    Raises
    ------
    TypeError
        If the model is of neither framework.
    ValueError
        If the outputs for the example are not finite, or a layer is not built yet.
    RuntimeError
        If the outputs for the example differ by more than rounding.

    Examples
    --------
    >>> import pytest
    >>> torch = pytest.importorskip("torch")
    >>> layers = torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.BatchNorm2d(4)
    >>> folded = fold(torch.nn.Sequential(*layers).eval(), torch.rand(1, 1, 8, 8))
    >>> folded[1], folded.folding.folded
    (Identity(), (('0', '1'),))
    >>> dict(folded.folding.left)
    {'3': 'what arrives comes from relu, not from a linear or convolutional layer'}
    """
    return part(model, "fold").fold(model, example)


def replace(model: Any, to: Any, *, layers: Collection[str] | None = None, **settings: Any) -> Repair:
    """Put other normalisers in the place of batch-norm layers; what can be kept is kept.

    Kept are gamma and beta (in PyTorch the very parameters, which an optimizer goes on with), the statistics where the
    new layer has them, the mode, the device and the precision. What the network computes is another function: it has to
    be trained on.

    Parameters
    ----------
    model : torch.nn.Module or keras.Model
    to : str or callable
        Such as ``"group"``, ``"layer"``, ``"instance"``, ``"renorm"``, ``"ghost"`` or ``"sync"``; or a function that
        makes the new layer from the old one.
    layers : collection of str, or None
        Names of the layers to replace; None: all.
    **settings
        For the new layers, such as ``groups=8``. Without it ``"group"`` makes 32 groups, or as many fewer as it takes
        to have eight channels or more in each.

    Returns
    -------
    Repair
        Its ``model`` is the new model: in PyTorch the one that was given, changed in place, unless it is a batch-norm
        layer itself. Its ``undo()`` puts the very old layers back.

    Raises
    ------
    TypeError
        If the model is of neither framework, or the normaliser does not take the settings.
    ValueError
        If there is no such normaliser, if a setting has no valid value, or if a name is not a batch-norm layer's.

    Examples
    --------
    >>> import pytest
    >>> torch = pytest.importorskip("torch")
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), torch.nn.BatchNorm2d(8))
    >>> gamma = model[1].weight
    >>> replace(model, "group", groups=4)
    1 replaced by group: 1
    >>> type(model[1]).__name__, model[1].num_groups, model[1].weight is gamma
    ('GroupNorm', 4, True)
    """
    done: Repair = part(model, "replace").replace(model, to, layers=layers, **settings)
    return done
