"""What a model of the zoo is, and how the modules list theirs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass
class Case:
    """A model, and how a user would hand it to the audit.

    ``layer`` is where the defect is; empty: the model as a whole, or no defect.
    """

    model: Any
    data: Any = None
    layer: str = ""
    optimizer: Any = None
    mask: Any = None

    def audit(self) -> Any:
        import bnlearn

        return bnlearn.audit(self.model, self.data, optimizer=self.optimizer, mask=self.mask)


@dataclass(frozen=True)
class Entry:
    """How a case is made: ``make(seed)`` trains the model from that seed.

    ``code`` is the rule that the defect breaks; empty: a healthy model. ``needs`` is a library to be skipped without.
    """

    name: str
    framework: str
    code: str
    make: Callable[[int], Case]
    needs: str = ""


def register(entries: list[Entry], framework: str, seeded: Callable[[int], None]) -> Callable[..., Any]:
    """A decorator that lists a function under its name, and sets all random states before it runs."""

    def listed(code: str = "", *, needs: str = "") -> Callable[[Callable[[int], Case]], Callable[[int], Case]]:
        def decorate(build: Callable[[int], Case]) -> Callable[[int], Case]:
            def make(seed: int) -> Case:
                seeded(seed)
                return build(seed)

            entries.append(Entry(f"{framework}-{build.__name__}", framework, code, make, needs))
            return build

        return decorate

    return listed
