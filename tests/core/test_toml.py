import sys

import pytest

from raft_diffusion.core.toml import format_toml, format_value, one_line, parse_toml, parse_value, show


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("none", None),
        ("8", 8),
        ("true", True),
        ("3e-4", 3e-4),
        ("[1, 'a']", [1, "a"]),
        ("{ a = 1 }", {"a": 1}),
        ('"8"', "8"),
        ("a cat, #1", "a cat, #1"),
        ("", ""),
        ("2024-01-01", "2024-01-01"),
        ("12:00:00", "12:00:00"),
        ("1\nother = 2", "1\nother = 2"),
        ("[" * 5000, "[" * 5000),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_a_typed_value_is_toml_or_bare_words(typed, value):
    assert parse_value(typed) == value
    assert type(parse_value(typed)) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = \n", "the file is no valid TOML: .*line 1"),
        ("a = " + "[" * 5000, "the file is no valid TOML: it is nested too deeply"),
        ("a = " + "9" * 5000, "the file is no valid TOML: .*4300"),
    ],
)
def test_what_is_no_toml_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_toml(text, where="the file")


def test_document_reads_back():
    values = {"a": 1, "s": {"b": [True, 'q"\x7f\n'], "c": {"x.y": 1e-30, "z": -2}}, "t": {"d": "ä"}}
    assert parse_toml(format_toml(values), where="") == values
    assert format_toml({"a": 1, "s": {"b": True}}) == "a = 1\n\n[s]\nb = true\n"
    assert format_value([{"text": "x", "weight": 2.0}]) == '[{ "text" = "x", "weight" = 2.0 }]'


def test_values_are_shown_short_and_on_one_line():
    assert (show(None), show(True), show("a"), show(1.5)) == ("none", "true", "'a'", "1.5")
    assert show("x" * 100) == f"'{'x' * 59}... (102 characters)"
    assert show(10 ** (sys.get_int_max_str_digits() + 1)) == "something too long to show"
    assert one_line("a\nb\x1b\u2028\udcff ä🐈") == "a\\nb\\x1b\\u2028\\udcff ä🐈"
