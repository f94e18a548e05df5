"""The digest changes with whatever may change a number, and with nothing else."""

from __future__ import annotations

import os
import sys
import textwrap

import pytest

from bnlearn.claims import digest
from bnlearn.claims._digest import code, modules

FILES = {
    "__init__": """
        from typing import TYPE_CHECKING
        if TYPE_CHECKING:
            from bnlearn import formulas
            from bnlearn.formulas import norm
        VERSION = 1
    """,
    "formulas/__init__": """
        from bnlearn.formulas.batch import norm
        from bnlearn.formulas.layer import norm as layer_norm
        from . import steps
        EPS = 1e-5
    """,
    "formulas/batch": "from bnlearn._core import standardize\ndef norm(x): return standardize(x)",
    "formulas/layer": "def norm(x): return x",
    "formulas/steps": "from ..unused import nothing",
    "_core": "def standardize(x): return x",
    "unused": "nothing = 0",
    "claims/_claim": "class Claim: pass",
    "claims/theme": """
        import math
        from bnlearn.claims._claim import Claim
        from bnlearn.formulas import norm
    """,
}


@pytest.fixture
def package(tmp_path):
    """Write a small package, or a change of it, and give the folder that it lies in."""

    def write(**changes):
        for name, text in {**FILES, **{name.replace("__", "/", 1): text for name, text in changes.items()}}.items():
            path = tmp_path / "bnlearn" / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text), "utf-8")
            os.utime(path, ns=(write.clock, write.clock))
            write.clock += 1
        return tmp_path

    write.clock = 1
    return write


def reached(root, text, package):
    package(claims__theme=text)
    return sorted(
        name.removeprefix("bnlearn.") for name in modules("bnlearn.claims.theme", root) - {"bnlearn.claims.theme"}
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import math", []),
        ("from bnlearn.claims._claim import Claim", []),  # the machinery does not make the numbers
        ("from bnlearn.formulas import norm", ["_core", "formulas.batch"]),
        ("from bnlearn.formulas import layer_norm as f", ["formulas.layer"]),
        ("from bnlearn import norm", ["_core", "formulas.batch"]),
        ("from bnlearn import formulas\nformulas.layer_norm(1)", ["formulas.layer"]),
        ("from bnlearn import formulas as f\nf.norm(f.layer_norm(1))", ["_core", "formulas.batch", "formulas.layer"]),
        ("def late():\n    from bnlearn.formulas.layer import norm", ["formulas.layer"]),
        ("from bnlearn.formulas import steps", ["formulas.steps", "unused"]),
        ("from ..formulas import layer_norm", ["formulas.layer"]),
        ("from ..formulas.batch import norm", ["_core", "formulas.batch"]),
        ("from bnlearn import unused", ["unused"]),
        ("import bnlearn.formulas.layer", ["formulas.layer"]),
    ],
)
def test_imports_are_followed_to_where_a_name_is_defined(package, text, expected):
    assert reached(package(), text, package) == expected


WHOLE = ["_core", "formulas", "formulas.batch", "formulas.layer", "formulas.steps", "unused"]


@pytest.mark.parametrize(
    "text",
    [
        "from bnlearn.formulas import EPS",  # defined in the package's own file
        "from bnlearn.formulas import *",
        "import bnlearn.formulas",
        "from bnlearn import formulas\nfor name in dir(formulas): pass",
        "from bnlearn import formulas\nformulas.EPS",
    ],
)
def test_a_package_that_is_used_as_such_is_taken_whole(package, text):
    assert reached(package(), text, package) == WHOLE


def test_the_package_s_own_file_counts_if_it_defines_what_is_used(package):
    assert reached(package(), "from bnlearn import VERSION", package) == sorted(["bnlearn", *WHOLE])


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({}, False),
        ({"claims__theme": FILES["claims/theme"] + "    RATE = 0.1"}, True),
        ({"_core": "def standardize(x): return 2 * x"}, True),  # two imports away
        ({"formulas__batch": FILES["formulas/batch"] + "  # by hand"}, False),
        ({"_core": "'''Words.'''\n\n\ndef standardize(x): return x  # more of them\n"}, False),
        ({"formulas__layer": "def norm(x): return x + 1"}, False),  # nobody's
        ({"formulas__init__": "from bnlearn.formulas.layer import norm"}, True),  # the name leads elsewhere
        ({"claims___claim": "class Claim: other = 1"}, False),
    ],
)
def test_it_differs_where_the_numbers_may(package, changes, differs):
    before = digest("bnlearn.claims.theme", package())
    changes = {name.replace("formulas__init__", "formulas____init__"): text for name, text in changes.items()}
    assert (digest("bnlearn.claims.theme", package(**changes)) != before) == differs


def test_it_is_that_of_the_name_too(package):
    root = package(formulas__layer=FILES["_core"])
    assert digest("bnlearn.formulas.layer", root) != digest("bnlearn._core", root)


def test_a_module_outside_the_package_is_followed_too(tmp_path, monkeypatch):
    (tmp_path / "own_theme.py").write_text("from bnlearn.functional import batch_norm\n", "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_theme", raising=False)
    __import__("own_theme")
    assert {"own_theme", "bnlearn.functional.batch"} <= modules("own_theme")
    assert "bnlearn.functional" not in modules("own_theme")
    assert len(digest("own_theme")) == 64
    monkeypatch.delitem(sys.modules, "own_theme")


def test_words_are_taken_out():
    source = textwrap.dedent('''
        """A module, «très» wordy."""
        X = "é"  # ü

        def f(x: str = "# no comment") -> str:
            r"""A docstring
            of two lines."""
            y = """kept
            # kept too"""

            return y  # gone

        A = 1
        """The attribute."""
    ''')
    assert code(source).splitlines() == [
        'X = "é"',
        'def f(x: str = "# no comment") -> str:',
        '    y = """kept',
        '    # kept too"""',
        "    return y",
        "A = 1",
    ]


def test_the_prose_of_a_claim_is_taken_out_and_its_criteria_are_not():
    claim = textwrap.dedent("""
        CLAIMS = (Claim(
            id="B2",
            statement={statement},
            criteria=(Criterion("a", "b", {support}),),  # why
            run=run,
            note={note},
        ),)
    """)

    def stripped(**values):
        return code(claim.format(**{"statement": '"x"', "support": 1, "note": '"n"'} | values))

    assert stripped() == stripped(statement='(\n"a longer one, "\n"of two lines"\n)')
    assert stripped() == stripped(note='f"{SETTING} and more"')
    assert stripped() != stripped(support=2)
    assert "run=run" in stripped()
    assert code('_claim.Claim(id="B2", note="x")') == code('_claim.Claim(id="B2", note="y")')
    assert code('Other(note="x")') != code('Other(note="y")')
    assert code('Claim("B2", *more)') == 'Claim("B2", *more)'
    assert code("Claim()") == "Claim()"
