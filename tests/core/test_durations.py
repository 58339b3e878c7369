"""Durations: text to steps and back."""

import pydantic
import pytest

from twinblock.core.durations import Duration
from twinblock.core.errors import InputError


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("80steps", 80),
        ("1step", 1),
        ("10epochs", 70),
        ("1epoch", 7),
        ("2.5epochs", 18),  # 17.5 rounded to even
        ("25%", 50),
        ("12.5%", 25),
        ("0.1%", 1),  # never nothing, unless it says nothing
        ("0steps", 0),
        ("0%", 0),
        (" 10 epochs ", 70),
    ],
)
def test_steps_of_7_an_epoch_and_200_in_all(text, steps):
    assert Duration.parse(text).steps(7, 200) == steps


BAD = [80, 80.0, "80", "", "epochs", "-1steps", "1e3steps", "10 eons", "5%%", None, True]


@pytest.mark.parametrize("value", BAD)
def test_anything_else_is_refused_with_the_three_forms(value):
    with pytest.raises(InputError, match=r"write it as 80steps, 10epochs or 25%"):
        Duration.parse(value)


def test_half_a_step_and_more_than_everything_are_refused():
    with pytest.raises(InputError, match="whole"):
        Duration.parse("2.5steps")
    with pytest.raises(InputError, match="at most 100%"):
        Duration.parse("101%")


@pytest.mark.parametrize("text", ["80steps", "1000000steps", "10epochs", "2.5epochs", "25%", "0.0000001%", "0steps"])
def test_text_comes_back(text):
    assert str(Duration.parse(text)) == text
    assert Duration.parse(str(Duration.parse(text))) == Duration.parse(text)


def test_spellings_of_one_length_are_equal():
    one = Duration.parse("1epoch")
    assert one == Duration.parse("1.0epochs") == Duration.parse(" 1 epochs") == Duration.parse(one)
    assert str(Duration.parse("1.50epochs")) == "1.5epochs"


def test_percent_needs_the_length_of_the_run():
    with pytest.raises(InputError, match="share of the run"):
        Duration.parse("25%").steps(7)
    assert Duration.parse("3epochs").steps(7) == 21


class Model(pydantic.BaseModel):
    length: Duration = Duration.parse("3epochs")


def test_a_field_of_a_model():
    model = Model.model_validate({"length": "10epochs"})
    assert model.length == Duration.parse("10epochs")
    assert model.model_dump() == {"length": "10epochs"}
    assert Model.model_validate_json(model.model_dump_json()) == model
    assert Model(length=Duration.parse("25%")).length.unit == "%"
    assert Model().model_dump() == {"length": "3epochs"}


def test_a_field_refuses_with_the_same_words():
    with pytest.raises(pydantic.ValidationError, match=r"write it as 80steps, 10epochs or 25%"):
        Model.model_validate({"length": 10})
