"""Batch normalisation, from the formula to your own model: the companion package of the book.

``import bnlearn`` costs next to nothing: what you name is loaded when you name it, and a framework only by yourself.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bnlearn import claims, clinic, family, functional, layers, viz
    from bnlearn.clinic import audit, fold, freeze, recalibrate, replace
    from bnlearn.functional import batch_norm

__version__ = "0.1.0"

__all__ = [
    "audit",
    "batch_norm",
    "claims",
    "clinic",
    "family",
    "fold",
    "freeze",
    "functional",
    "layers",
    "recalibrate",
    "replace",
    "viz",
]

_FUNCTIONS = {
    "batch_norm": "functional",
    **dict.fromkeys(("audit", "fold", "freeze", "recalibrate", "replace"), "clinic"),
}
# Modules for those who come for more than the twelve names above; `import bnlearn.torch` and the like load a framework.
_UNLISTED = ("datasets", "gradcheck", "training")

# Two distributions on PyPI share the import name, and pip merges their folders without a word.
_FOREIGN = ("bnlearn.py", "structure_learning.py", "parameter_learning.py")


def _refuse_foreign_files(folder: Path) -> None:
    """Raise ImportError if files of PyPI's other ``bnlearn`` lie in ``folder``."""
    foreign = [name for name in _FOREIGN if (folder / name).exists()]
    if foreign:
        raise ImportError(
            f"two packages named bnlearn are mixed in {folder}: 'batchnorm-learn' (batch normalisation, this one) and "
            f"'bnlearn' (Bayesian networks, which {', '.join(foreign)} belongs to). Keep one per environment: "
            "pip uninstall -y bnlearn batchnorm-learn, then install this one again from its clone: pip install -e ."
        )


_refuse_foreign_files(Path(__file__).parent)


if not TYPE_CHECKING:  # pragma: no branch - a type checker shall find the names above, and no others

    def __getattr__(name: str) -> Any:
        if name in _FUNCTIONS:
            return getattr(import_module(f"bnlearn.{_FUNCTIONS[name]}"), name)
        if name in __all__ or name in _UNLISTED:
            return import_module(f"bnlearn.{name}")
        raise AttributeError(f"module 'bnlearn' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
