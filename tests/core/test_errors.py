"""The words of messages."""

from twinblock.core.errors import first_line, nearest, one_line


def test_an_error_of_others_in_one_line():
    assert one_line(ValueError("a\n  b\tc")) == "a b c"
    assert one_line(KeyError()) == first_line(KeyError()) == "KeyError"
    assert first_line(RuntimeError("\nno  key\nat frame #1")) == "no key"
    assert len(one_line(ValueError("x" * 999))) == 120


def test_near_words_whatever_their_case():
    assert nearest("RESNET18x", ["resnet18", "vgg11"]) == ["resnet18"]
    assert nearest("nothing", ["resnet18"]) == []
