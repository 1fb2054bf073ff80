"""A user's own reward: any function `(images, prompts) -> numbers`, named as "module:function"."""

from __future__ import annotations

import difflib
import importlib
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.loop import Reward
from ..core.records import Sample


def load_custom(name: str) -> Reward:
    """The reward behind "module:function"; a module in the current folder is found. Its name is the function's.

    The function takes a list of PIL images and the list of their prompts and returns one number for each, higher is
    better. Raises ValueError for a name that leads to no such function.
    """
    module_name, colon, function_name = name.partition(":")
    if not (colon and module_name and function_name):
        raise ValueError(f'the reward {name!r} must be written "module:function", such as my_rewards:brightness')
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ValueError(f"the reward {name!r}: module {module_name!r} cannot be imported ({error})") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        names = [n for n in vars(module) if callable(getattr(module, n)) and not n.startswith("_")]
        near = difflib.get_close_matches(function_name, names, n=3, cutoff=0.4) or names[:5]
        raise ValueError(f"the reward {name!r}: {module_name} has no function {function_name!r}; it has {near}")

    def reward(samples: Sequence[Sample]) -> Mapping[str, Sequence[Any]]:
        images = [sample.data.image for sample in samples]
        try:
            values: Any = function(images, [sample.prompt.text for sample in samples])
        except Exception as error:
            ids = ", ".join(sample.id for sample in samples[:4])
            more = f" and {len(samples) - 4} more" if len(samples) > 4 else ""
            raise ValueError(f"reward {name!r} failed on samples {ids}{more}: {error}") from error
        if not hasattr(values, "__len__") or isinstance(values, (str, bytes)) or getattr(values, "ndim", 1) == 0:
            raise ValueError(f"reward {name!r} returned {values!r}; it must return a list with one number a picture")
        return {function_name: [_plain(value) for value in values]}

    return reward


def _plain(value: Any) -> Any:
    """A NumPy or torch scalar as a Python number; anything else as it is, for the loop to refuse by its sample."""
    return value.item() if math.prod(getattr(value, "shape", (0,))) == 1 else value
