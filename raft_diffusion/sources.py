"""Candidates from elsewhere: a folder of pictures, any program, several experts mixed (arXiv:2304.06767).

RAFT learns from whatever wins, so a candidate may come from anywhere. Every contest of K is shared out in the same way,
so that the experts compete for each prompt and their numbers are known before a run starts. No torch before a picture
is made.
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .core.config import Config
from .core.loop import Policy
from .core.records import OWN, Draw, Progress, Prompt, Sample, derive_seed

if TYPE_CHECKING:
    from PIL import Image

    from .core.unfinished import Shelf

FOLDER = "folder:"
Generate = Callable[[Sequence[Draw]], list[Sample]]


def counts(shares: Mapping[str, float], k: int) -> dict[str, int]:
    """How many of the K candidates of a contest each source makes: by its share, the largest remainders rounded up.

    Raises ValueError where a source would make none.
    """
    total = math.fsum(shares.values())
    exact = {source: share / total * k for source, share in shares.items()}
    found = {source: int(number) for source, number in exact.items()}
    rest = sorted(exact, key=lambda source: found[source] - exact[source])  # stable: the first of equals
    for source in rest[: k - sum(found.values())]:
        found[source] += 1
    if none := next((source for source, number in found.items() if not number), None):
        raise ValueError(
            f"sampling.sources: {none} would make none of the {k} candidates of a contest; give it a larger share, or "
            "raise sampling.samples_per_prompt"
        )
    return found


def own_share(config: Config) -> float:
    """The share of the candidates that the run's own model makes."""
    sampling = config.sampling
    return counts(sampling.sources, sampling.samples_per_prompt).get(OWN, 0) / sampling.samples_per_prompt


def check_sources(config: Config) -> None:
    """Refuse sources that are not there, and folders that hold too few pictures of a prompt; none is unpacked.

    Raises ValueError with every problem.
    """
    from .checks import run_all
    from .rewards import split_custom

    sources = config.sampling.sources
    others = [source for source in sources if source != OWN]
    checks: list[Callable[[], object]] = [lambda: counts(sources, config.sampling.samples_per_prompt)]
    for source in others:
        if source.startswith(FOLDER):
            checks.append(lambda source=source: _check_folder(config, source))
        else:
            checks.append(lambda source=source: split_custom(source, what="generator"))
    if config.sampling.base_share and OWN not in sources:
        checks.append(_refuse_base_share)
    run_all(checks)


def _refuse_base_share() -> None:
    raise ValueError(
        "sampling.base_share is a share of the policy's own candidates, and sampling.sources lack that: leave it out"
    )


def _check_folder(config: Config, source: str) -> None:
    from .gallery import captioned

    pictures = captioned(folder_of(source))
    wanted = counts(config.sampling.sources, config.sampling.samples_per_prompt)[source]
    for prompt in config.train_prompts():
        _enough(pictures, prompt, wanted, folder_of(source))


def _enough(pictures: Mapping[str, Sequence[Path]], prompt: Prompt, wanted: int, folder: Path) -> list[Path]:
    """The pictures of a prompt, `wanted` at least."""
    found = list(pictures.get(prompt.text, ()))
    if not found:
        near = difflib.get_close_matches(prompt.text, pictures, n=2, cutoff=0.5) or list(pictures)[:3]
        known = ", ".join(repr(text[:80]) for text in near)
        raise ValueError(f"the folder {folder} holds no picture of {prompt.text!r}; what it holds is of {known}")
    if len(found) < wanted:
        raise ValueError(
            f"the folder {folder} holds {len(found)} of the {wanted} different pictures of {prompt.text!r} that a "
            "contest takes: add some, or lower sampling.samples_per_prompt or the folder's share"
        )
    return found


def folder_of(source: str) -> Path:
    return Path(os.path.expanduser(source.removeprefix(FOLDER)))


def shared_out(draws: Iterable[Draw], config: Config, index: int) -> list[Draw]:
    """The requests of round `index`, each with who answers it and, of a folder, with which picture.

    The first k of a contest go to the first source, and so on. A folder's pictures are shuffled for each round, by its
    index alone, and dealt out: none comes twice in a contest, nor in a round before all of its prompt have come.
    Raises ValueError for a folder that no longer holds enough.
    """
    sampling = config.sampling
    parts = counts(sampling.sources, sampling.samples_per_prompt)
    answers = [source for source, number in parts.items() for _ in range(number)]
    placed = [replace(draw, source=answers[draw.k % sampling.samples_per_prompt]) for draw in draws]
    for source in sampling.sources:
        if source.startswith(FOLDER):
            placed = _with_items(placed, source, seed=config.seed, index=index)
    return placed


def _with_items(draws: Sequence[Draw], source: str, *, seed: int, index: int) -> list[Draw]:
    from .gallery import captioned

    folder = folder_of(source)
    pictures = captioned(folder)
    contests: dict[Prompt, dict[int, list[Draw]]] = {}
    for draw in draws:
        if draw.source == source:
            contests.setdefault(draw.prompt, {}).setdefault(draw.group, []).append(draw)
    items: dict[str, str] = {}
    for prompt, groups in contests.items():
        sizes = [len(asked) for asked in groups.values()]
        names = [path.relative_to(folder).as_posix() for path in _enough(pictures, prompt, max(sizes), folder)]
        dealt = _dealt(names, sizes, seed=seed, position=(index, prompt.id))
        for asked, chosen in zip(groups.values(), dealt, strict=True):
            items |= {draw.id: name for draw, name in zip(asked, chosen, strict=True)}
    return [replace(draw, item=items[draw.id]) if draw.id in items else draw for draw in draws]


def _dealt(
    names: Sequence[str], sizes: Sequence[int], *, seed: int, position: tuple[int | str, ...]
) -> Iterator[list[str]]:
    """Hands of these sizes, dealt from a shuffled pack; when it is used up, the same names are shuffled again."""
    pack: list[str] = []
    turn = 0
    for size in sizes:
        hand: list[str] = []
        while len(hand) < size:
            found = next((name for name in pack if name not in hand), None)
            if found is None:
                turn += 1
                order = {name: derive_seed(seed, "folder", *position, turn, name) for name in names}
                pack += sorted(names, key=order.__getitem__)
            else:
                pack.remove(found)
                hand.append(found)
        yield hand


class MixedPolicy:
    """A Policy whose samples come from several sources, each asked for the draws that name it.

    own: the policy that learns. others: source -> what answers in its name.
    """

    def __init__(self, own: Policy, others: Mapping[str, Generate]) -> None:
        self._own, self._others = own, others

    def generate(self, draws: Sequence[Draw]) -> list[Sample]:
        made: dict[str, Sample] = {}
        for source in dict.fromkeys(draw.source for draw in draws):
            asked = [draw for draw in draws if draw.source == source]
            answer = self._own.generate if source == OWN else self._others[source]
            made |= {sample.id: sample for sample in answer(asked)}
        return [made[draw.id] for draw in draws]

    def save(self, folder: Path) -> None:
        self._own.save(folder)

    def load(self, folder: Path) -> None:
        self._own.load(folder)


def with_sources(config: Config, own: Policy, policy: Any, progress: Progress | None = None) -> Policy:
    """What candidates come from: `own`, and beside or instead of it the other sources of the settings.

    policy: the model with the VAE. Every picture of a folder that a prompt asks for is read here once, so that a broken
    one stops no run half-way. Raises ValueError for it, and for a function that is not there.
    """
    from .gallery import captioned
    from .images import read_image

    sampling = config.sampling
    if set(sampling.sources) == {OWN}:
        return own
    from .diffusion.outside import Outside

    outside = Outside(policy.components, width=sampling.width, height=sampling.height)
    others: dict[str, Generate] = {}
    for source in sampling.sources:
        if source.startswith(FOLDER):
            pictures = captioned(folder_of(source))
            for path in dict.fromkeys(p for prompt in config.train_prompts() for p in pictures.get(prompt.text, ())):
                read_image(path)
            others[source] = _from_folder(folder_of(source), outside, progress)
        elif source != OWN:
            others[source] = _from_function(source, outside, sampling.batch_size, progress, lambda: policy.shelf)
    return MixedPolicy(own, others)


def _from_folder(folder: Path, outside: Any, progress: Progress | None) -> Generate:
    from .images import read_image

    def answer(draws: Sequence[Draw]) -> list[Sample]:
        samples = []
        for done, draw in enumerate(draws, start=1):
            path = folder / draw.item
            samples.append(Sample(draw, outside.picture(read_image(path)[0], name=str(path), key=path)))
            if progress:
                progress("sample", done, len(draws))
        return samples

    return answer


def _from_function(
    name: str,
    outside: Any,
    batch_size: int,
    progress: Progress | None,
    shelf: Callable[[], Shelf | None] = lambda: None,
) -> Generate:
    """The user's own program as a source: any function (prompts, seeds) -> pictures. shelf: where its finished batches
    are kept at the moment."""
    from .images import rgb
    from .rewards.custom import load_function, told

    takes = "the list of prompts and the list of their seeds, as in def {}(prompts, seeds)"
    function = load_function(name, what="generator", takes=takes)

    def made(batch: Sequence[Draw]) -> list[Sample]:
        first = f"sample {batch[0].id} ({batch[0].prompt.text!r})"
        try:
            images: Any = function([draw.prompt.text for draw in batch], [draw.seed for draw in batch])
        except Exception as error:
            raise ValueError(f"generator {name!r} failed on the {len(batch)} from {first} on: {told(error)}") from error
        return [
            Sample(draw, outside.picture(rgb(image), name=f"sample {draw.id} of {name}"))
            for draw, image in zip(batch, _checked(images, batch, f"generator {name!r}"), strict=True)
        ]

    def answer(draws: Sequence[Draw]) -> list[Sample]:
        samples: list[Sample] = []
        for start in range(0, len(draws), batch_size):
            batch = draws[start : start + batch_size]
            make, kept = partial(made, batch), shelf()
            samples += kept.batch(batch, name, make) if kept else make()
            if progress:
                progress("sample", len(samples), len(draws))
        return samples

    return answer


def _checked(images: Any, draws: Sequence[Draw], told: str) -> list[Image.Image]:
    """What a generator returned, if it is one PIL image a draw."""
    from PIL import Image

    if not isinstance(images, list | tuple) or len(images) != len(draws):
        got = f"{len(images)}" if isinstance(images, list | tuple) else type(images).__name__
        raise ValueError(
            f"{told} returned {got} for {len(draws)} prompts (first sample: {draws[0].id}); it must return a list with "
            "one PIL image for each, in order"
        )
    for draw, image in zip(draws, images, strict=True):
        if not isinstance(image, Image.Image):
            raise ValueError(
                f"{told} returned {type(image).__name__} for sample {draw.id} ({draw.prompt.text!r}); it must be a "
                "PIL image"
            )
    return list(images)
