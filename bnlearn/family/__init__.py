"""The whole family at a glance: what each method averages over, learns, depends on and costs, and where it lives.

Nothing here is remembered that can be found out: the axes, the dependence on the batch, the difference between training
and inference and the cost are probed by running the functions (:func:`probe_axes` and the others), and the tests hold
what the registry declares against the probes. No framework is imported.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from bnlearn.family._member import (
    Cost,
    Example,
    Member,
    cost,
    footprint,
    influence,
    probe_axes,
    probe_batch,
    probe_modes,
)
from bnlearn.family._members import MEMBERS
from bnlearn.family._trees import convert, leaves

__all__ = [
    "Cost",
    "Example",
    "Member",
    "convert",
    "cost",
    "footprint",
    "influence",
    "leaves",
    "markdown",
    "member",
    "members",
    "probe_axes",
    "probe_batch",
    "probe_modes",
    "table",
]


def members(acts_on: str | None = None) -> tuple[Member, ...]:
    """All methods, in the order of the book; or those that act on one thing, such as ``"weights"``."""
    return tuple(m for m in MEMBERS if acts_on in (None, m.acts_on))


def member(name: str) -> Member:
    """The method of this name.

    Raises
    ------
    ValueError
        If there is none.
    """
    for found in MEMBERS:
        if found.name == name:
            return found
    raise ValueError(f"expected one of {', '.join(m.name for m in MEMBERS)}, got {name!r}")


def _over(method: Member) -> str:
    return (
        ", ".join(f"{axis[8:]} in parts" if axis.startswith("part of ") else axis for axis in method.over) or "nothing"
    )


def table(methods: Iterable[Member] = MEMBERS) -> list[dict[str, str]]:
    """One row for each method, by the names of the columns; cells are Markdown, ``{cite:t}`` included.

    Examples
    --------
    >>> row = table([member("group_norm")])[0]
    >>> row["Statistics over"], row["Learns"]
    ('C in parts, L', '`gamma` (C,), `beta` (C,)')
    """
    rows = []
    for method in methods:
        spent = cost(method)
        backward = "" if method.backward is None else f" + {spent.backward:.0f}"
        rows.append(
            {
                "Method": method.title,
                "Acts on": method.acts_on,
                "Statistics over": _over(method),
                "Learns": ", ".join(f"`{name}` {shape}" for name, shape in method.shapes().items()) or "nothing",
                "Depends on the batch": "yes" if method.depends_on_batch else "no",
                "Training differs from inference": "yes" if method.modes_differ else "no",
                "Operations per value": f"{spent.forward:.0f}{backward}",
                "Paper": f"{{cite:t}}`{method.paper}`",
                "Formula": f"`{method.name}`",
                "NumPy": f"`{method.numpy}`" if method.numpy else "",
                "PyTorch": f"`{method.torch}`" if method.torch else "",
                "Keras": f"`{method.keras}`" if method.keras else "",
            }
        )
    return rows


def markdown(rows: Sequence[Mapping[str, str]], columns: Sequence[str]) -> str:
    """A Markdown table of these columns; an empty cell gets a dash.

    Examples
    --------
    >>> print(markdown([{"a": "1", "b": ""}], ["a", "b"]))
    | a | b |
    |---|---|
    | 1 | – |
    """
    lines = [columns, *([row[column] or "–" for column in columns] for row in rows)]
    text = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([text[0], "|" + "---|" * len(columns), *text[1:]])
