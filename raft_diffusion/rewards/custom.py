"""A user's own reward: any function `(images, prompts) -> numbers`, named as "module:function"; of text,
`(texts, prompts) -> numbers`."""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
import reprlib
import sys
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from ..core.loop import Reward
from ..core.records import Sample
from . import score_name, split_custom


def load_custom(name: str, *, datum: Literal["image", "text"] = "image") -> Reward:
    """The reward behind "module:function"; a module in the current folder is found. Its name is the function's.

    The function takes a list of PIL images, or of the texts that answer the prompts, and the list of their prompts, and
    returns one number for each, higher is better. datum: which of the two the samples hold.
    Raises ValueError for a name that leads to no such function, and when it scores: for a function that
    raises, by the first sample that makes it do so, and for what is no list. `core.loop.score` refuses the rest.
    """
    many = "pictures" if datum == "image" else "texts"
    function = load_function(
        name,
        what="reward",
        takes=f"the list of {many} and the list of their prompts, as in def {{}}({datum}s, prompts)",
    )
    function_name = score_name(name)

    def reward(samples: Sequence[Sample]) -> Mapping[str, Sequence[Any]]:
        data, prompts = [getattr(sample.data, datum) for sample in samples], [sample.prompt.text for sample in samples]
        try:
            values: Any = function(data, prompts)
        except Exception as error:
            where = _where(function, data, prompts, samples)
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
