"""Is an answer right? Numbers and expressions compared exactly, as fractions: 0.5, 1/2 and \\frac{1}{2} are equal."""

from __future__ import annotations

import re
from fractions import Fraction

_NUMBER = re.compile(r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+")
_SIGNED = re.compile(r"(?:(?<![\d)])-\s?)?(?:" + _NUMBER.pattern + r")(?:/\d+)?")  # in 5-3 the sign is no part of 3
_TOKEN = re.compile(r"\s*(?:(" + _NUMBER.pattern + r")|(\*\*|[-+*/^()%]))")
_LARGEST_BITS = 4096
"""Of a power's result: an expression of few characters may stand for a number that fills the memory."""
_LARGEST_TEXT = 400
"""Longer "answers" are no answers; the bound keeps an expression's depth and size small."""


def extract(text: str) -> str | None:
    """The final answer in a text: the last \\boxed{...}, else what follows the last "####" (GSM8K's mark), else the
    last number. None where there is none of these."""
    if (box := _last_box(text)) is not None:
        return box
    if "####" in text:
        return text.rpartition("####")[2].strip().partition("\n")[0].strip() or None
    numbers = _SIGNED.findall(text)
    return numbers[-1].replace(" ", "") if numbers else None


def equal(answer: str, truth: str) -> bool:
    """Whether two answers are the same number, exactly; where either is no number, the same text up to spaces."""
    first, second = value(answer), value(truth)
    if first is None or second is None:
        return _plain(answer) == _plain(truth)
    return first == second


def value(text: str) -> Fraction | None:
    """The number that an expression stands for: decimals, thousands commas, %, + - * / ^, brackets, \\frac, \\times,
    \\cdot, \\div. None for anything else, for a division by 0 and for a power that is not whole or
    too large."""
    if len(text) > _LARGEST_TEXT:
        return None
    tokens = _tokens(_plain(text))
    if not tokens:
        return None
    try:
        found, rest = _sum(tokens)
    except (ValueError, ZeroDivisionError, RecursionError):
        return None
    return None if rest else found


def _plain(text: str) -> str:
    text = text.strip().strip("$").strip().removesuffix(".").replace("\\!", "").replace("\\,", "").replace("\\%", "%")
    text = re.sub(r"\\(?:left|right)(?=[()\[\]])", "", text)
    text = re.sub(r"\\(?:times|cdot)(?![a-zA-Z])", "*", text)
    text = re.sub(r"\\div(?![a-zA-Z])", "/", text)
    fraction = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
    while (changed := fraction.sub(r"((\1)/(\2))", text)) != text:
        text = changed
    text = re.sub(r"\^\s*\{([^{}]*)\}", r"^(\1)", text)
    return "".join(text.replace("−", "-").lstrip("$").split())


def _last_box(text: str) -> str | None:
    start = max(text.rfind("\\boxed{"), text.rfind("\\fbox{"))
    if start < 0:
        return None
    start = text.index("{", start)
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "{") - (text[place] == "}")
        if depth == 0:
            return text[start + 1 : place].strip()
    return None  # the box was never closed: the answer was cut off


def _tokens(text: str) -> list[str] | None:
    tokens, place = [], 0
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            return None
        tokens.append(match.group(1) or match.group(2))
        place = match.end()
    return tokens


def _sum(tokens: list[str]) -> tuple[Fraction, list[str]]:
    total, rest = _product(tokens)
    while rest and rest[0] in "+-":
        sign = 1 if rest[0] == "+" else -1
        part, rest = _product(rest[1:])
        total += sign * part
    return total, rest


def _product(tokens: list[str]) -> tuple[Fraction, list[str]]:
    total, rest = _signed(tokens)
    while rest and rest[0] in ("*", "/"):
        part, after = _signed(rest[1:])
        total, rest = (total * part if rest[0] == "*" else total / part), after
    return total, rest


def _signed(tokens: list[str]) -> tuple[Fraction, list[str]]:
    if tokens and tokens[0] in ("+", "-"):
        found, rest = _signed(tokens[1:])
        return (found if tokens[0] == "+" else -found), rest
    base, rest = _atom(tokens)
    if rest and rest[0] in ("^", "**"):
        power, rest = _signed(rest[1:])
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if power.denominator != 1 or abs(power) * bits > _LARGEST_BITS:
            raise ValueError("this power is no whole number, or its result is too large")
        base = base ** int(power)
    return base, rest


def _atom(tokens: list[str]) -> tuple[Fraction, list[str]]:
    if not tokens:
        raise ValueError("the expression ends too early")
    if tokens[0] == "(":
        found, rest = _sum(tokens[1:])
        if not rest or rest[0] != ")":
            raise ValueError("a bracket stays open")
        rest = rest[1:]
    else:
        found, rest = Fraction(tokens[0].replace(",", "")), tokens[1:]  # a stray sign is a ValueError, too
    while rest and rest[0] == "%":
        found, rest = found / 100, rest[1:]
    return found, rest
