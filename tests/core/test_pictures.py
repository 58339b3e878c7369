"""A picture is never a reason to lose a result."""

import pytest
from matplotlib.figure import Figure

from twinblock.core.pictures import literal, optional_picture

ODD = ["$USER_$JOB", "a$x^$", "lr$0.1$\\alpha^$", r"a\$b$^$", b"\xe9t\xe9".decode("utf-8", "surrogateescape")]


@pytest.mark.parametrize("text", ODD)
def test_any_text_is_shown_letter_by_letter(text, tmp_path):
    figure = Figure()
    figure.suptitle(literal(text))
    figure.savefig(tmp_path / "a.png")


def test_a_picture_that_fails_is_a_warning(tmp_path):
    told = []
    with optional_picture(tmp_path / "curves.png", told.append):
        raise RuntimeError("no font\nanywhere")
    assert told == ["curves.png was not drawn (no font anywhere); nothing else is missing"]
    with pytest.raises(KeyboardInterrupt), optional_picture(tmp_path / "a.png", told.append):
        raise KeyboardInterrupt
