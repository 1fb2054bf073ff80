"""What an exported LoRA says of itself: the keys that WebUIs and LoRA managers read, from the run folder alone.

Sources: kohya's sd-scripts (`ss_*`), Stability's ModelSpec 1.0.1 (`modelspec.*`); `raft.*` are our own.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import takewhile
from pathlib import Path
from typing import Any

from ..core.config import Config
from ..core.evaluated import read_evaluation
from ..core.looks import read_ending
from ..core.rows import read_object
from ..core.store import stored_rounds
from ..sd15 import HUB_ID

POCKET = "pocket"
RESERVED = ("none", "addams")  # names that AUTOMATIC1111 takes for something else


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a run is known by.

    stem: the file's name without its ending, which is the LoRA's name in WebUIs. rank, alpha: as trained.
    rounds: that the LoRA has learned from, of `finished` ones: the guard may have kept an earlier round's.
    winners: prompt -> how often it won in `rounds` rounds. evaluation: of this LoRA, None where there was none.
    tags: whether the prompts may be told.
    """

    config: Config
    stem: str
    rank: int
    alpha: float
    started: datetime
    rounds: int
    finished: int
    winners: Mapping[str, int]
    evaluation: Mapping[str, Any] | None
    tags: bool

    @property
    def is_pocket(self) -> bool:
        return self.config.model == POCKET

    @property
    def weight(self) -> float:
        """The strength at which it was evaluated and is to be used."""
        return self.config.sampling.lora_scale

    @property
    def prompts(self) -> list[str]:
        """The prompts that won, most frequent first."""
        return sorted(self.winners, key=lambda text: (-self.winners[text], text)) if self.tags else []

    @property
    def trigger(self) -> str:
        """The words that all of them begin or end with: "monet style" of "monet style cat" and "monet style dog"."""
        return trigger_words(self.prompts)


def trigger_words(prompts: Iterable[str]) -> str:
    """The words that all of these prompts begin or end with."""
    texts = [text.split() for text in prompts]
    head = _shared(texts)
    tail = _shared([words[len(head) :][::-1] for words in texts])[::-1]
    return " ".join([*head, *tail])


def default_stem(name: str, last_round: int | None, *, is_pocket: bool) -> str:
    """What an exported LoRA is called unless its user says otherwise. name: the configuration's; last_round: see
    `gather`."""
    if is_pocket and not name.startswith(f"{POCKET}-"):
        name = f"{POCKET}-{name}"
    if name.lower() in RESERVED:
        name = f"raft-{name}"
    return name if last_round is None else f"{name}-round{last_round}"


def _shared(lines: Sequence[Sequence[str]]) -> list[str]:
    """What all of them begin with."""
    columns = takewhile(lambda words: len(set(words)) == 1, zip(*lines, strict=False))
    return [words[0] for words in columns]


def gather(run: Path, *, stem: str, rank: int, alpha: float, last_round: int | None, tags: bool) -> Facts:
    """The facts of a run up to a round, None for the one whose LoRA is its result; its dates are the run's own.

    Raises ValueError for a folder without a complete round, and for damaged files.
    """
    rounds = list(stored_rounds(run))
    result = result_round(run, len(rounds))
    last = result if last_round is None else last_round
    winners = Counter(
        scored.sample.prompt.text
        for round_ in rounds[:last]
        for group in round_.groups
        for scored in group.candidates
        if scored.sample.id in round_.winners
    )
    return Facts(
        config=Config.load(run / "config.toml"),
        stem=stem,
        rank=rank,
        alpha=alpha,
        started=_started(run / "environment.json"),
        rounds=last,
        finished=len(rounds),
        winners=dict(winners),
        evaluation=read_evaluation(run) if last == result else None,  # no other round was evaluated
        tags=tags,
    )


def result_round(run: Path, finished: int) -> int:
    """The round whose LoRA is the result of a run of so many rounds: the last, or the one that its guard kept; 0 for
    what the run started from."""
    ending = read_ending(run, after=finished)
    return finished if ending is None else ending.keep


def _started(path: Path) -> datetime:
    facts = read_object(path)
    try:
        return datetime.fromisoformat(facts["started"]).astimezone(UTC)
    except (KeyError, TypeError, ValueError, OverflowError):
        raise ValueError(f"{path} does not say when the run started; put it back from a copy of the run") from None


def metadata(facts: Facts) -> dict[str, str]:
    """Every key with its value as text; no path, no host's or user's name."""
    return {"format": "pt", **_training(facts), **_modelspec(facts), **_raft(facts)}


def _training(facts: Facts) -> dict[str, str]:
    sampling, tuning = facts.config.sampling, facts.config.tuning
    images = sum(facts.winners.values())
    keys = {
        "ss_base_model_version": "raft_pocket_v1" if facts.is_pocket else "sd_v1",
        "ss_v2": "False",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(facts.rank),
        "ss_network_alpha": str(facts.alpha),
        "ss_output_name": facts.stem,
        "ss_sd_model_name": model_name(facts.config.model),
        "ss_clip_skip": str(sampling.clip_skip) if sampling.clip_skip > 1 else "None",
        "ss_training_started_at": str(facts.started.timestamp()),
        "ss_resolution": f"({sampling.width}, {sampling.height})",
        "ss_num_train_images": str(images),
        "ss_epoch": str(facts.rounds),
        "ss_steps": str(tuning.steps * (1 if tuning.restart else facts.rounds)),
        "ss_learning_rate": f"{tuning.learning_rate:g}",
        "ss_bucket_info": json.dumps(
            {"buckets": {"0": {"resolution": [sampling.width, sampling.height], "count": images}}}
        ),
        "ss_dataset_dirs": json.dumps({"1_raft": {"n_repeats": 1, "img_count": images}}),
    }
    if "convolution" in tuning.targets:
        keys["ss_network_args"] = json.dumps({"conv_dim": str(facts.rank), "conv_alpha": str(facts.alpha)})
    if facts.tags:
        keys["ss_tag_frequency"] = json.dumps({"1_raft": dict(sorted(facts.winners.items()))}, ensure_ascii=False)
    return keys


def _modelspec(facts: Facts) -> dict[str, str]:
    sampling = facts.config.sampling
    predictions = {"epsilon": "epsilon", "v_prediction": "v", None: "epsilon" if facts.config.model == HUB_ID else ""}
    keys = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "raft-pocket/lora" if facts.is_pocket else "stable-diffusion-v1/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": facts.stem,
        "modelspec.description": description(facts),
        "modelspec.date": facts.started.isoformat(timespec="seconds"),
        "modelspec.resolution": f"{sampling.width}x{sampling.height}",
        "modelspec.prediction_type": predictions[facts.config.prediction_type],
        "modelspec.trigger_phrase": facts.trigger,
        "modelspec.usage_hint": usage_hint(facts),
        "modelspec.license": licence(facts),
    }
    return {key: value for key, value in keys.items() if value}


def _raft(facts: Facts) -> dict[str, str]:
    config = facts.config
    keys = {
        "raft.rounds": str(facts.rounds),
        "raft.samples_per_prompt": str(config.sampling.samples_per_prompt),
        "raft.rewards": json.dumps(dict(sorted(config.rewards.weights.items()))),
    }
    if facts.evaluation:
        measured = {
            name: {key: row[key] for key in ("base", "tuned", "difference", "ci95", "pairs")}
            for _, name, row in measurements(facts.evaluation)
        }
        keys["raft.evaluation"] = json.dumps(measured)
    return keys


def measurements(evaluation: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any]]]:
    """("judge" or "rewards", name, row) of what was compared on the same seeds, numbers to four digits."""
    return [
        (kind, name, {key: _rounded(value) for key, value in row.items()})
        for kind in ("judge", "rewards")
        for name, row in evaluation[kind].items()
    ]


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value


def model_name(model: str) -> str:
    """The base model's name without any path: the last part of a hub id, a folder or a file."""
    return Path(model.replace("\\", "/")).name.removesuffix(".safetensors")


def licence(facts: Facts) -> str:
    if facts.is_pocket:
        return "MIT"
    base = "CreativeML Open RAIL-M"
    return base if facts.config.model == HUB_ID else f"{base}, and that of {model_name(facts.config.model)}"


def usage_hint(facts: Facts) -> str:
    """How to use it, in one line."""
    sampling = facts.config.sampling
    if facts.is_pocket:
        return "Only for the small model that raft_diffusion carries; no WebUI has that model."
    made = f"{sampling.width}x{sampling.height}, {sampling.scheduler}, {sampling.num_inference_steps} steps"
    made += f", clip skip {sampling.clip_skip}" if sampling.clip_skip > 1 else ""
    words = f' Write "{facts.trigger}" in the prompt.' if facts.trigger else ""
    return f"Weight {facts.weight:g}.{words} Trained at {made}, CFG scale {sampling.guidance_scale:g}."


def description(facts: Facts) -> str:
    """What it is, in one line."""
    weights = facts.config.rewards.weights
    rewards = " and ".join(sorted(weights, key=lambda name: (-abs(weights[name]), name)))
    rounds = "1 round" if facts.rounds == 1 else f"{facts.rounds} rounds"
    base = "raft_diffusion's small model" if facts.is_pocket else model_name(facts.config.model)
    return f"A LoRA for {base}: {rounds} of RAFT (arXiv:2304.06767) on its own best pictures, ranked by {rewards}."
