"""One piece of work after the other, in a thread of its own."""

import threading

import pytest

from twinblock.core.later import Later


def test_it_is_done_while_other_work_goes_on_and_in_order():
    later, go, done = Later(), threading.Event(), []
    later.start(lambda: done.append(("first", go.wait(60))))
    assert done == []
    go.set()
    later.start(lambda: done.append(("second", True)))  # waits for the first
    assert done[0] == ("first", True)
    later.wait()
    assert done == [("first", True), ("second", True)]


@pytest.mark.parametrize("then", ["wait", "start"])
def test_what_it_raises_is_raised_once_by_what_comes_next(then):
    later = Later()
    later.start(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        later.wait() if then == "wait" else later.start(lambda: None)
    later.wait()


def test_beside_another_error_it_is_only_said(caplog):
    later = Later()
    later.start(lambda: 1 / 0)
    later.close()
    assert "division by zero" in caplog.text
    later.close()
