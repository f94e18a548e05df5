"""What every repair gives back: the record, and the way back."""

from __future__ import annotations

import copy
import pickle

import pytest

from bnlearn.clinic._repair import Repair


def repair(**changes):
    undone = []

    def undo():
        undone.append(True)
        return "as it was"

    given = {"what": "frozen", "model": "changed", "layers": ("bn1", "bn2"), "left": {"bn3": "it is unused"}} | changes
    return Repair(*given.values(), undo), undone


def test_it_tells_what_was_done_and_what_was_left():
    done, undone = repair()
    assert (done.what, done.model, done.layers, dict(done.left)) == (
        "frozen",
        "changed",
        ("bn1", "bn2"),
        {"bn3": "it is unused"},
    )
    assert repr(done) == "2 frozen: bn1, bn2\nleft bn3: it is unused"
    assert not undone


def test_nothing_done_is_told_too():
    assert repr(repair(layers=(), left={})[0]) == "0 frozen"


def test_the_record_cannot_be_changed():
    layers, left = ["bn1"], {"bn2": "why"}
    done, _ = repair(layers=layers, left=left)
    layers.append("bn9")
    left["bn9"] = "later"
    assert done.layers == ("bn1",)
    assert dict(done.left) == {"bn2": "why"}
    with pytest.raises(TypeError):
        done.left["bn9"] = "later"


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, pickle.dumps])
def test_it_is_not_copied_for_the_way_back_is_for_one_model(again):
    done, undone = repair(left={})
    with pytest.raises(TypeError, match=r"got a Repair, whose undo\(\) is for this very model; take \.model"):
        again(done)
    assert again(done.model)
    assert not undone


def test_undo_is_done_once():
    done, undone = repair()
    assert done.undo() == "as it was"
    assert done.model == "as it was"
    with pytest.raises(RuntimeError, match="expected a repair that stands, got one that was taken back: frozen"):
        done.undo()
    assert undone == [True]


def test_as_a_context_manager_it_undoes_at_the_end():
    done, undone = repair()
    with done as inside:
        assert inside is done
        assert not undone
    assert undone == [True]
    assert done.model == "as it was"


def test_an_error_inside_is_undone_too_and_goes_on():
    done, undone = repair()
    with pytest.raises(KeyboardInterrupt), done:
        raise KeyboardInterrupt
    assert undone == [True]


def test_undone_inside_it_is_not_undone_again():
    done, undone = repair()
    with done:
        done.undo()
    assert undone == [True]


def test_an_undo_that_fails_is_not_tried_again():
    def undo():
        raise OSError("no")

    done = Repair("frozen", "changed", (), {}, undo)
    with pytest.raises(OSError, match="no"):
        done.undo()
    with pytest.raises(RuntimeError, match="taken back: frozen"):
        done.undo()
