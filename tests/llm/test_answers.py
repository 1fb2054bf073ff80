from fractions import Fraction

import pytest

from raft_diffusion.llm.answers import equal, extract, value


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3", 3), ("-3", -3), ("0.5", Fraction(1, 2)), ("1,234.5", Fraction(2469, 2)), (".25", Fraction(1, 4)),
        ("1/3", Fraction(1, 3)), (r"\frac{1}{3}", Fraction(1, 3)), (r"\dfrac{2}{\frac{1}{2}}", 4), ("2+3*4", 14),
        ("(2+3)*4", 20), ("2^10", 1024), ("2^{-1}", Fraction(1, 2)), ("-2^2", -4), (r"2\times 3", 6),
        ("50%", Fraction(1, 2)),
        ("$7$", 7), ("$1,000.", 1000), (r"\left(1+1\right)\cdot 3", 6), ("2**3**2", 512), ("8/2/2", 2), ("5-3-1", 1),
    ],
)  # fmt: skip
def test_expressions_are_exact(text, number):
    assert value(text) == number


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "1/0",
        "0^{-1}",
        "(1",
        "1)",
        "+",
        "2^0.5",
        "2^",
        "((9^64)^64)^64",
        "(" * 300,
        "9" * 500,
        r"\sqrt{2}",
        "1.2.3",
    ],
)
def test_what_is_no_number_is_none_and_never_hangs(text):
    assert value(text) is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{\frac{1}{2}} it is 7", r"\frac{1}{2}"), (r"\boxed{1} no, \boxed{2}", "2"), 
        ("Thus 3.\n#### 1,234\n", "1,234"),
        ("7+8=15;3+4+1=8:85", "85"), ("5-3", "3"), ("it is -4 degrees", "-4"), ("a/b = 3/4", "3/4"), ("the (2)5", "5"),
        ("none", None), ("", None), ("####", None),
    ],
)  # fmt: skip
def test_the_final_answer_is_found(text, answer):
    assert extract(text) == answer


def test_a_box_that_was_cut_off_is_no_answer_in_a_box():
    assert extract(r"\boxed{12") == "12"  # the last number is all that is left


def test_answers_are_equal_as_numbers_or_as_the_same_text():
    assert equal("0.50", r"\frac{1}{2}")
    assert equal("1,000", "1000.0")
    assert not equal("0.333", "1/3")
    assert equal(r"x + 1", "x+1")
    assert not equal("x", "1")
