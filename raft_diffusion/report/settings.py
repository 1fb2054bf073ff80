"""The settings on the report's page: in plain words what mattered, and behind it all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from ..core.config import Config
from ..core.records import OWN
from .reader import is_number, numbers, table

TOLD = {  # settings that `_told` puts into words
    *("model", "rounds", "seed", "sampling.width", "sampling.height", "sampling.scheduler", "rewards.weights"),
    "sampling.sources",
    *("sampling.num_inference_steps", "sampling.guidance_scale", "sampling.collect_guidance_scale"),
    *("sampling.samples_per_prompt", "sampling.groups_per_prompt", "selection.best", "tuning.rank", "tuning.alpha"),
    *("tuning.steps", "tuning.batch_size", "tuning.learning_rate", "guard.enabled"),
}
NO_MATTER = {  # that change no result
    *("name", "threads", "device", "trackers", "sampling.batch_size", "tuning.gradient_checkpointing"),
    *("evaluation.pairs", "evaluation.ood_pairs", "evaluation.best_of", "guard.pairs", "precision", "rewards.timeout"),
}


def mattered(config: Mapping[str, Any]) -> dict[str, str]:
    """What decides the result, in words, then every other setting that is not the usual one, by its name."""
    if not config:
        return {}
    usual = _usual()
    flat = flattened(config)
    unusual = {
        name: value
        for name, value in flat.items()
        if name in usual and name not in TOLD | NO_MATTER and value != usual[name]
    }
    return {what: words for what, words in _told(config).items() if words} | unusual


def _told(config: Mapping[str, Any]) -> dict[str, str]:
    """Label -> words; what the configuration does not say is empty."""
    sampling, tuning, selection, rewards = (
        table(config.get(name)) for name in ("sampling", "tuning", "selection", "rewards")
    )
    prompts = table(config.get("prompts")).get("train")
    texts = [str(table(p).get("text", p)) if isinstance(p, dict) else str(p) for p in prompts or []]
    guard = table(config.get("guard")).get("enabled")
    candidate = sampling.get("collect_guidance_scale")
    weights = ", ".join(f"{name} (weight {weight:g})" for name, weight in numbers(rewards.get("weights")).items())
    return {
        "Base model": str(config.get("model", "")),
        "Prompts": _some(texts),
        "Rounds": _words(config, "{rounds}"),
        "Candidates": _words(sampling, "{samples_per_prompt} in a group")
        + _words(sampling, ", {groups_per_prompt} groups a prompt and round"),
        "Made by": _sources(numbers(sampling.get("sources"))),
        "Ranked by": weights,
        "Winners": _words(selection, "the best {best} of a group"),
        "The LoRA": _words(tuning, "rank {rank}, alpha {alpha}"),
        "Learning": _words(tuning, "{steps} steps a round of {batch_size} pictures, learning rate {learning_rate}"),
        "Pictures": _words(sampling, "{width} × {height} px, {scheduler}, {num_inference_steps} steps, ")
        + _words(sampling, "guidance {guidance_scale}")
        + (f" (candidates: {candidate})" if is_number(candidate) else ""),
        "Guard": {True: "on", False: "off"}.get(guard, "") if isinstance(guard, bool) else "",
        "Seed": _words(config, "{seed}"),
    }


def _sources(shares: Mapping[str, float]) -> str:
    """Where candidates come from; "" where the model makes all of them."""
    return "" if set(shares) <= {OWN} else ", ".join(f"{source} (share {share:g})" for source, share in shares.items())


def _words(values: Mapping[str, Any], pattern: str) -> str:
    """The pattern filled in, or nothing where a value is missing."""
    short = {name: f"{value:g}" if isinstance(value, float) else value for name, value in values.items()}
    try:
        return pattern.format_map(short)
    except KeyError:
        return ""


def _some(texts: list[str], most: int = 4) -> str:
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(f"“{_clipped(text)}”" for text in texts[:most]) + more


def _clipped(text: str, limit: int = 120) -> str:
    return text if len(text) <= limit else f"{text[:limit]}…"


def _usual() -> dict[str, str]:
    """Every setting that has a default, by its dotted name, as `flattened` writes it."""
    values: dict[str, Any] = {}
    for name, field in Config.model_fields.items():
        default = field.default
        if isinstance(default, BaseModel):
            values[name] = {key: getattr(default, key) for key in type(default).model_fields}
        elif not field.is_required():
            values[name] = default
    return flattened(values)


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested tables as dotted names, values as a person would write them."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, dict) and f"{prefix}{name}" not in ("rewards.weights", "sampling.sources"):
            flat |= flattened(value, f"{prefix}{name}.")
        else:
            plain = isinstance(value, list) and not any(isinstance(item, dict | list) for item in value)
            flat[f"{prefix}{name}"] = ", ".join(map(str, value)) if plain else str(value)
    return flat


def grouped(config: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """The settings by TOML table; those above the first table come first, under an empty name."""
    tables = {name: value for name, value in config.items() if isinstance(value, dict)}
    top = {name: value for name, value in config.items() if name not in tables}
    return {name: flattened(values) for name, values in ({"": top} | tables).items() if values}
