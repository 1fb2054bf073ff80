"""What the three fuzz tests share: values of every kind, the command line in this process, and how it ended."""

from __future__ import annotations

import datetime
import io
import json
import linecache
import math
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from raft_diffusion import cli
from raft_diffusion.core.toml import one_line as one_line

PACKAGE = str(Path(cli.__file__).parent)
SECONDS = 30
"""That one example may take on a busy machine before it counts as a hang."""
WORST = (
    "\n", "a\nb\r\nc", "\x1b[31mred\x1b[0m", "\u202egpj.exe", "\u2066left\u2069", "\x85", "\u2028", "\x7f", "\ufeff",
    "<script>alert(1)</script>", "[bold]x[/bold]", "[/nothing]", "{{ 7 * 7 }}", "{}", "%s%n", "$(id)", "'\"\\", "|",
    "`", "größe", "日本語", "😀", "e\u0301", "\U0010ffff", "\udcff", "a" * 10_000, "😀" * 10_000, " ", "\t", "", ".",
    "..", "/", "~", "~nobody/x", "../../etc/passwd", "//", "-", "--", "none", "null", "true", "nan", "inf", "-1", "0",
    "1e400",
)  # fmt: skip
NUMBERS = (
    *(0, 1, -1, 2, 3, 7, 8, 9, 64, 255, 1000, 2**31 - 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 10**30),
    *(10**400, 0.0, -0.0, 0.5, 1.0, 1.5, 1e-9, 5e-324, 1e308, -1e308, math.inf, -math.inf, math.nan),
)
words = st.sampled_from(WORST) | st.text(max_size=20)
numbers = st.sampled_from(NUMBERS) | st.integers() | st.floats()
scalars = words | numbers | st.booleans() | st.dates() | st.times() | st.datetimes()
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3), max_leaves=6
)


class Reached(BaseException):
    """All checks are passed: what comes now is work. No handler of mistakes may catch it."""


class Hang(BaseException):
    """One example took too long."""


class Ends(Counter[str]):
    """How the examples ended."""

    def told(self, what: str) -> str:
        return f"\n{what}: {sum(self.values())} examples: " + ", ".join(f"{n} {end}" for end, n in self.most_common())


@contextmanager
def limited(seconds: int = SECONDS) -> Iterator[None]:
    """Raises Hang where the body takes longer, on systems that have such an alarm."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def ring(*_: object) -> None:
        raise Hang(f"no end after {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def check_sentence(error: BaseException, sentence: str) -> None:
    """A refusal is one line that prints as it is, and was meant: raised by the package itself, in so many words."""
    assert sentence.strip(), repr(error)
    assert sentence.isprintable(), ascii(sentence)
    assert not sentence.startswith("[Errno"), sentence
    if isinstance(error, OSError):
        return
    assert type(error) is ValueError or type(error).__module__.startswith("raft_diffusion"), repr(error)
    place = error.__traceback__
    assert place is not None
    while place.tb_next is not None:
        place = place.tb_next
    code = place.tb_frame.f_code
    assert code.co_filename.startswith(PACKAGE), f"{code.co_filename}: {error!r}"
    lines = [linecache.getline(code.co_filename, place.tb_lineno - back).strip() for back in range(12)]
    assert any(line.startswith("raise ") for line in lines), f"{code.co_filename}:{place.tb_lineno}: {error!r}"


def check_shown(text: str) -> None:
    """Nothing that drives a terminal, or that lets words be read in another order than they stand in."""
    assert not (found := {c for c in text if c != "\n" and not c.isprintable()}), ascii(found)


def command(arguments: list[str]) -> tuple[str, str]:
    """How this command line ends: "accepted" (before the work), "finished", "refused" or "usage"; and its sentence.
    Anything else is a fault and raises."""
    told = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="backslashreplace", write_through=True)
    shown = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="strict", write_through=True)
    seen: list[Exception] = []
    app, on_term = cli.app, signal.getsignal(signal.SIGTERM)

    def recorded(**options: Any) -> Any:
        try:
            return app(**options)
        except Exception as error:
            seen.append(error)
            raise

    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(shown),
        redirect_stderr(told),
        warnings.catch_warnings(),
        limited(),
    ):
        warnings.simplefilter("always")
        patch.setattr(sys, "argv", ["raft-diffusion", *arguments])
        patch.setattr(cli, "app", recorded)
        try:
            cli.main()
            code = 0
        except Reached:
            return "accepted", ""
        except SystemExit as stop:
            code = stop.code or 0
        finally:
            signal.signal(signal.SIGTERM, on_term)
    if code in (0, 1) and not seen:
        check_shown(shown.buffer.getvalue().decode() + told.buffer.getvalue().decode())
        return "finished", ""
    assert code == 2, (code, seen)
    text = told.buffer.getvalue().decode()
    assert "Traceback" not in text, text
    if not isinstance(seen[0], ValueError | OSError):  # the parser's own, which says how it is used
        return "usage", ""
    lines = [line for line in text.split("\n")[:-1] if not line.startswith("note: ")]
    *before, sentence = lines  # with --json - people read here what the command does
    assert sentence.startswith("raft-diffusion: "), text
    assert not any(line.startswith("raft-diffusion: ") for line in before), text
    check_sentence(seen[0], sentence.removeprefix("raft-diffusion: "))
    return "refused", sentence


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, and every folder in it."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


def to_toml(value: Any) -> str:
    """Any value as TOML, without the help of the package; half characters stay halves."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return "".join(('"', *(_character(c) for c in value), '"'))
    if isinstance(value, list):
        return f"[{', '.join(map(to_toml, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{to_toml(str(key))} = {to_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return repr(value)


def _character(c: str) -> str:
    if c in '"\\':
        return f"\\{c}"
    return f"\\u{ord(c):04x}" if ord(c) < 32 or ord(c) == 127 else c


def text_of(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value) if isinstance(value, dict | list) else str(value)
