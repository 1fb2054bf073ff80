"""A user's own reward: any function `(images, prompts) -> numbers`, named as "module:function"; of text,
`(texts, prompts) -> numbers`."""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
import reprlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from functools import partial
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Any, Literal

from ..core.loop import Reward
from ..core.records import Sample
from . import score_name, split_custom


def load_custom(name: str, *, datum: Literal["image", "text"] = "image", timeout: float | None = None) -> Reward:
    """The reward behind "module:function"; a module in the current folder is found. Its name is the function's.

    The function takes a list of PIL images, or of the texts that answer the prompts, and the list of their prompts, and
    returns one number for each, higher is better. datum: which of the two the samples hold.
    timeout: seconds that one call may take; None for no limit. With a limit the function runs in a thread, which Python
    cannot end: when the time is up the run ends, and the thread with its process. A process of its own could be ended,
    but would have to load the function's model anew and be sent every picture.
    Raises ValueError for a name that leads to no such function, and when it scores: for a function that raises or takes
    too long, by the first sample that makes it do so, and for what is no list. `core.loop.score` refuses the rest.
    """
    many = "pictures" if datum == "image" else "texts"
    function = load_function(
        name,
        what="reward",
        takes=f"the list of {many} and the list of their prompts, as in def {{}}({datum}s, prompts)",
    )
    function_name = score_name(name)
    call = function if timeout is None else partial(_limited, function, timeout)

    def reward(samples: Sequence[Sample]) -> Mapping[str, Sequence[Any]]:
        data, prompts = [getattr(sample.data, datum) for sample in samples], [sample.prompt.text for sample in samples]
        try:
            values: Any = call(data, prompts)
        except _TooLong as late:
            raise ValueError(
                f"reward {name!r} took more than {timeout:g} s for {late.where(samples)}; mend it, or raise "
                "rewards.timeout"
            ) from None
        except Exception as error:
            where = _where(call, data, prompts, samples)
            raise ValueError(f"reward {name!r} failed on {where}: {told(error)}") from error
        ordered = hasattr(values, "__len__") and not isinstance(values, (str, bytes, Mapping, Set))
        if not ordered or getattr(values, "ndim", 1) == 0:
            kind = "" if values is None else f" ({type(values).__name__})"
            raise ValueError(
                f"reward {name!r} returned {reprlib.repr(values)}{kind} for the samples from {samples[0].id} on; "
                f"it must return a list with one number {'a picture' if datum == 'image' else 'a text'}"
            )
        return {function_name: [_plain(value) for value in values]}

    return reward


class _TooLong(Exception):
    """taken: the place of the datum that the function took last, -1 for none; it may have hung there."""

    def __init__(self, taken: int) -> None:
        super().__init__("it took too long")
        self.taken = taken

    def where(self, samples: Sequence[Sample]) -> str:
        """The sample, or all of them where the function had taken the last one: it may have hung on any."""
        if len(samples) > 1 and self.taken in (-1, len(samples) - 1):
            return f"the {len(samples)} samples from {samples[0].id} on"
        sample = samples[self.taken]
        return f"sample {sample.id} ({sample.prompt.text!r}), the last that it took"


class _Watched(list[Any]):
    """A list that knows which of its items was taken last."""

    taken = -1

    def __iter__(self) -> Iterator[Any]:
        for self.taken, item in enumerate(super().__iter__()):
            yield item


def _limited(function: Callable[..., Any], seconds: float, data: Sequence[Any], prompts: Sequence[str]) -> Any:
    """function(data, prompts) in a thread. Raises what it raises, and _TooLong when it is not done in `seconds`."""
    watched, outcome = _Watched(data), {}

    def run() -> None:
        try:
            outcome["values"] = function(watched, prompts)
        except BaseException as error:
            outcome["error"] = error

    thread = Thread(target=run, name="reward", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise _TooLong(watched.taken)
    if "error" in outcome:
        raise outcome["error"]
    return outcome["values"]


def load_function(name: str, *, what: str, takes: str) -> Callable[..., Any]:
    """The function behind "module:function", which takes two lists; a module in the current folder is found.

    what: "reward"; takes: what it must take, with {} for its name. Raises ValueError for a name that leads to no such
    function.
    """
    module_name, function_name = split_custom(name, what=what)
    return _find(f"the {what} {name!r}", _import(f"the {what} {name!r}", module_name), function_name, takes)


def _import(who: str, module_name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == module_name
        near = difflib.get_close_matches(module_name, [path.stem for path in Path(here).glob("*.py")], n=1)
        if missing and near:
            why = f"; did you mean {near[0]}?"
        elif missing:
            why = f"; put {module_name.partition('.')[0]}.py into the present folder, or install it"
        else:
            why = ""
        raise ValueError(f"{who}: module {module_name!r} cannot be imported ({told(error)}){why}") from error


def _find(who: str, module: ModuleType, function_name: str, takes: str) -> Callable[..., Any]:
    function = getattr(module, function_name, None)
    if not callable(function):
        names = [n for n in vars(module) if callable(getattr(module, n)) and not n.startswith("_")]
        near = difflib.get_close_matches(function_name, names, n=3, cutoff=0.4) or names[:5]
        has = f"it has {', '.join(near)}" if near else "it has none"
        raise ValueError(f"{who}: {module.__name__} has no function {function_name!r}; {has}")
    if inspect.isclass(function):
        raise ValueError(f"{who} is a class; name a function, or an object of the class")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some built-in functions tell nothing of themselves
        return function
    try:
        signature.bind([], [])
    except TypeError as error:
        raise ValueError(f"{who} takes {signature} and must take {takes.format(function_name)}") from error
    return function


def _where(function: Callable[..., Any], data: Sequence[Any], prompts: Sequence[str], samples: Sequence[Sample]) -> str:
    """The sample on which the function fails: halves are tried until one is left, which
    costs no more than one further call with all of them."""
    low, high = 0, len(samples)
    while high - low > 1:
        middle = (low + high) // 2
        if _fails(function, data[low:middle], prompts[low:middle]):
            high = middle
        else:
            low = middle
    if _fails(function, data[low:high], prompts[low:high]):
        return f"sample {samples[low].id} ({samples[low].prompt.text!r})"
    return f"the {len(samples)} samples from {samples[0].id} on, though on none of them alone"


def _fails(function: Callable[..., Any], data: Sequence[Any], prompts: Sequence[str]) -> bool:
    try:
        function(data, prompts)
    except Exception:
        return True
    return False


def told(error: BaseException) -> str:
    """The error in one line, its kind first: the text of a KeyError alone says nothing."""
    return " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")


def _plain(value: Any) -> Any:
    """A NumPy or torch scalar as a Python number; anything else as it is, for the loop to refuse by its sample."""
    return value.item() if math.prod(getattr(value, "shape", (0,))) == 1 else value
