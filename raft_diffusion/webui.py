"""What WebUIs (AUTOMATIC1111, Forge) call things: sampler names, the text a picture carries, prompt syntax.

Nothing here imports torch.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any


class PromptWarning(UserWarning):
    """Part of a prompt is cut, or is read as plain text where a WebUI would read a command."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduler:
    """One way to sample.

    name: as a WebUI spells it, or diffusers' class name where WebUIs have none.
    kind, changes: diffusers' class, and the settings that make it that sampler.
    sampler, schedule_type: `name` in the two fields of a newer WebUI; the type is "" where WebUIs have no choice.
    """

    name: str
    kind: str
    changes: Mapping[str, Any]
    sampler: str
    schedule_type: str


_MULTISTEP = "DPMSolverMultistepScheduler"
_ORDER_2 = {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint"}
_SDE = {**_ORDER_2, "algorithm_type": "sde-dpmsolver++"}
_SIGMAS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
# A name means what it says, whatever scheduler the model's folder was saved with: one with a DDIM, say, asks for steps
# that start well below the highest noise level ("leading"), and no WebUI does that with these samplers.
_NO_SIGMAS: dict[str, Any] = dict.fromkeys(_SIGMAS, False)
_PLAIN = {**_NO_SIGMAS, "timestep_spacing": "linspace"}
_TYPES: dict[str, dict[str, Any]] = {
    "Karras": {"use_karras_sigmas": True},
    "Exponential": {"use_exponential_sigmas": True},
    # diffusers' documentation gives one setting for both; WebUIs' own two lists differ by less than one noise level.
    "SGM Uniform": {"timestep_spacing": "trailing"},
    "Simple": {"timestep_spacing": "trailing"},
}
_ALL = ("Karras", "Exponential", "SGM Uniform", "Simple")
_SPACING = ("SGM Uniform", "Simple")
_SAMPLERS: dict[str, tuple[str, dict[str, Any], str, tuple[str, ...]]] = {
    "DPM++ 2M": (_MULTISTEP, {**_PLAIN, **_ORDER_2}, "Uniform", _ALL),
    "DPM++ 2M SDE": (_MULTISTEP, {**_PLAIN, **_SDE}, "Uniform", _ALL),
    "DPM++ 2M SDE Heun": (_MULTISTEP, {**_PLAIN, **_SDE, "solver_type": "heun"}, "Uniform", _ALL),
    "DPM++ 3M SDE": (_MULTISTEP, {**_PLAIN, **_SDE, "solver_order": 3}, "Uniform", _ALL),
    "Euler": ("EulerDiscreteScheduler", _PLAIN, "Uniform", _ALL),
    "Euler a": ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "linspace"}, "Uniform", _SPACING),
    "Heun": ("HeunDiscreteScheduler", _PLAIN, "Uniform", _ALL),
    "DPM2": ("KDPM2DiscreteScheduler", _PLAIN, "Uniform", _ALL),
    "DPM2 a": ("KDPM2AncestralDiscreteScheduler", _PLAIN, "Uniform", _ALL),
    "UniPC": ("UniPCMultistepScheduler", _PLAIN, "", _ALL),
    # Latents leave [-1, 1]; these clip to it unless the model's own configuration forbids it.
    "DDIM": ("DDIMScheduler", {"clip_sample": False}, "", ()),
    "DDPM": ("DDPMScheduler", {"clip_sample": False}, "", ()),
    "PLMS": ("PNDMScheduler", {"skip_prk_steps": True}, "", ()),
    "PNDM": ("PNDMScheduler", {}, "", ()),
    "LCM": ("LCMScheduler", {"clip_sample": False}, "", ()),
    "TCD": ("TCDScheduler", {"clip_sample": False}, "", ()),
    "DEIS": ("DEISMultistepScheduler", {**_PLAIN, "algorithm_type": "deis", "solver_type": "logrho"}, "", _ALL),
    # It refuses the zero that multistep samplers end at unless its last step is of first order.
    "DPMSolverSinglestepScheduler": (
        "DPMSolverSinglestepScheduler",
        {**_NO_SIGMAS, **_ORDER_2, "lower_order_final": True},
        "",
        ("Karras", "Exponential"),
    ),
}
"""Sampler -> diffusers' class, its settings, the type that its plain form is called in a WebUI, its other types."""


def _table() -> dict[str, Scheduler]:
    table = {}
    for sampler, (kind, changes, plain, types) in _SAMPLERS.items():
        table[sampler] = Scheduler(name=sampler, kind=kind, changes=changes, sampler=sampler, schedule_type=plain)
        for type_ in types:
            name = f"{sampler} {type_}"
            changed = {**changes, **_TYPES[type_]}
            table[name] = Scheduler(name=name, kind=kind, changes=changed, sampler=sampler, schedule_type=type_)
    return table


SCHEDULERS: dict[str, Scheduler] = _table()
"""Every sampler by its name: WebUIs' "DPM++ 2M Karras", which newer ones split into sampler and schedule type."""

WITH_ETA = ("DDIM", "TCD")
"""The samplers whose noise a step is a setting; the ancestral and SDE ones always add theirs."""

_UNAVAILABLE = {
    "DPM++ SDE": "DPM++ 2M SDE",
    "DPMSolverSDEScheduler": "DPM++ 2M SDE",
    "DPM++ 2S a": "DPM2 a",
    "DPM fast": "DPM++ 2M",
    "DPM adaptive": "DPM++ 2M",
    "LMS": "DPM++ 2M",
    "LMSDiscreteScheduler": "DPM++ 2M",
    "Restart": "Heun",
    "DDIM CFG++": "DDIM",
}
"""Samplers of WebUIs that diffusers lacks, or has only with other packages, and the nearest one that it has."""
_WEBUI_TYPES = (
    *("Automatic", "Uniform", *_TYPES, "Polyexponential", "KL Optimal", "Align Your Steps", "Normal", "DDIM", "Beta"),
    *("Turbo", "Align Your Steps GITS", "Align Your Steps 11", "Align Your Steps 32"),
)


@cache
def find_scheduler(name: str) -> Scheduler:
    """The sampler of a WebUI's name or of diffusers' class name; capitals and extra spaces do not matter.

    Raises ValueError with the nearest names for one that is unknown or cannot be had.
    """
    wanted = _folded(name)
    known = {_folded(scheduler.kind): scheduler for scheduler in reversed(SCHEDULERS.values())}
    known |= {_folded(f"{s.sampler} {s.schedule_type}"): s for s in SCHEDULERS.values()}
    known |= {_folded(title): scheduler for title, scheduler in SCHEDULERS.items()}
    if wanted in known:
        return known[wanted]
    for sampler in sorted({*_SAMPLERS, *_UNAVAILABLE}, key=len, reverse=True):
        rest = wanted.removeprefix(_folded(sampler))
        types = [type_ for type_ in _WEBUI_TYPES if rest == f" {_folded(type_)}"]
        if rest == wanted or (rest and not types):
            continue
        if sampler in _UNAVAILABLE:
            nearest = _UNAVAILABLE[sampler]
            with_type = f"{nearest} {types[0]}" if types else nearest
            nearest = with_type if with_type in SCHEDULERS else nearest
            raise ValueError(f"the sampler {sampler!r} cannot be had here; the nearest is {nearest!r}")
        types_here = [s.schedule_type for s in SCHEDULERS.values() if s.sampler == sampler and s.schedule_type]
        offer = f"with {', '.join(types_here)}" if types_here else "without a schedule type"
        raise ValueError(f"the sampler {sampler!r} has no schedule type {types[0]!r} here; use it {offer}")
    close = difflib.get_close_matches(wanted, known, n=5, cutoff=0.3)
    nearest = list(dict.fromkeys(known[title].name for title in close))[:3]
    hint = f"; nearest: {', '.join(nearest)}" if nearest else ""
    raise ValueError(f"unknown scheduler {name!r}{hint}; known: {', '.join(_SAMPLERS)}, most with {', '.join(_TYPES)}")


def check_eta(eta: float, name: str) -> None:
    """Raises ValueError for noise at every step (`eta`) with a sampler that takes none."""
    if eta and find_scheduler(name).sampler not in WITH_ETA:
        raise ValueError(
            f"eta is {eta}, but the scheduler {name!r} has none; set it to 0, or choose {' or '.join(WITH_ETA)}"
        )


def _folded(name: str) -> str:
    return " ".join(name.split()).casefold()


@dataclass(frozen=True, slots=True, kw_only=True)
class Infotext:
    """The settings of one picture as AUTOMATIC1111 writes them under "parameters" in a PNG.

    sampler, schedule_type: see `Scheduler`. cfg_scale: guidance. width, height: pixels.
    model, vae: names, "" for the unknown or the model's own. clip_skip: 1 is the text encoder's last layer.
    lora: strength by the LoRA's file name without its ending. A WebUI takes LoRAs from the prompt, so they are written
        there as `<lora:name:strength>`, and read back from there.
    guidance_interval: the part of the steps that is guided, where it is not all; an entry that WebUIs ignore.
    adapter: the same for a LoRA without a file name that a WebUI could find, such as a run's: an entry of its own,
        which WebUIs ignore.
    rng: where the starting noise was drawn; a WebUI's own default is the GPU.
    version: the program that made the picture.
    """

    prompt: str
    negative_prompt: str = ""
    steps: int
    sampler: str
    schedule_type: str = ""
    cfg_scale: float
    seed: int
    width: int
    height: int
    model: str = ""
    vae: str = ""
    clip_skip: int = 1
    lora: Mapping[str, float] = field(default_factory=dict)
    adapter: str = ""
    guidance_interval: str = ""
    rng: str = ""
    version: str = ""

    def text(self) -> str:
        """The prompt, the negative prompt if there is one, and one line of settings."""
        tags = "".join(f" <lora:{name}:{_number(strength)}>" for name, strength in self.lora.items())
        settings = {
            "Steps": str(self.steps),
            "Sampler": self.sampler,
            "Schedule type": self.schedule_type,
            "CFG scale": _number(self.cfg_scale),
            "Guidance interval": self.guidance_interval,
            "Seed": str(self.seed),
            "Size": f"{self.width}x{self.height}",
            "Model": self.model,
            "VAE": self.vae,
            "Clip skip": str(self.clip_skip) if self.clip_skip > 1 else "",
            "Adapter": self.adapter,
            "RNG": self.rng,
            "Version": self.version,
        }
        negative = f"\nNegative prompt: {self.negative_prompt}" if self.negative_prompt else ""
        line = ", ".join(f"{key}: {_quote(value)}" for key, value in settings.items() if value)
        return f"{self.prompt}{tags}{negative}\n{line}".strip()


_SETTING = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
"""One "Key: value," as WebUIs read it; a value in quotes is JSON."""
_LORA = re.compile(r"[ \t]?<lora:([^:<>]+):(-?\d+(?:\.\d+)?)>")
_NEGATIVE = "Negative prompt:"


def parse_infotext(text: str) -> Infotext | None:
    """Read what a WebUI or `Infotext.text` wrote; None for a text that is no such thing.

    Entries that `Infotext` lacks are left out. Older WebUIs wrote "DPM++ 2M Karras" in one: it is split.
    """
    *lines, last = text.strip().split("\n")
    found = _SETTING.findall(last)
    if len(found) < 3:
        return None
    values = {key: _unquote(value.strip()) for key, value in found}
    prompts: dict[bool, list[str]] = {False: [], True: []}
    in_negative = False
    for line in map(str.strip, lines):
        in_negative = in_negative or line.startswith(_NEGATIVE)
        prompts[in_negative].append(line.removeprefix(_NEGATIVE).strip() if in_negative else line)
    prompt, negative = ("\n".join(prompts[side]).strip("\n") for side in (False, True))
    sampler, schedule_type = values.get("Sampler", ""), values.get("Schedule type", "")
    for type_ in ("Karras", "Exponential"):
        if not schedule_type and sampler.endswith(f" {type_}"):
            sampler, schedule_type = sampler.removesuffix(f" {type_}"), type_
    try:
        width, height = values["Size"].split("x")
        return Infotext(
            prompt=_LORA.sub("", prompt).strip(),
            negative_prompt=negative,
            steps=int(values["Steps"]),
            sampler=sampler,
            schedule_type=schedule_type,
            cfg_scale=float(values["CFG scale"]),
            seed=int(values["Seed"]),
            width=int(width),
            height=int(height),
            model=values.get("Model", ""),
            vae=values.get("VAE", ""),
            clip_skip=int(values.get("Clip skip", "1")),
            lora={name: float(strength) for name, strength in _LORA.findall(prompt)},
            adapter=values.get("Adapter", ""),
            guidance_interval=values.get("Guidance interval", ""),
            rng=values.get("RNG", ""),
            version=values.get("Version", ""),
        )
    except (KeyError, ValueError):
        return None


def _number(value: float) -> str:
    return repr(int(value) if value == int(value) else value)


def _quote(text: str) -> str:
    plain = text == text.strip() and not any(character in text for character in ',:\n"')
    return text if plain else json.dumps(text, ensure_ascii=False)


def _unquote(text: str) -> str:
    try:
        value = json.loads(text) if text[:1] == '"' else text
    except ValueError:
        return text
    return value if isinstance(value, str) else text


_LITERAL = re.compile(r"\\[()\[\]]|\([^()\\]*\)|\[[^\[\]\\]*\]|<\w+:[^<>]*>|\bBREAK\b|\bAND\b")


def literal_syntax(prompt: str) -> str | None:
    """A sentence about what a WebUI would take for a command, and the model here reads as it stands; None for none.

    That is `(word:1.2)`, `(word)`, `[word]`, `<lora:name:1>`, BREAK, AND, and the escaped brackets of such prompts.
    """
    found = list(dict.fromkeys(_LITERAL.findall(prompt)))
    if not found:
        return None
    shown = ", ".join(repr(shortened(part)) for part in found[:4]) + (" and more" if len(found) > 4 else "")
    return f"the prompt {shortened(prompt)!r} is read as plain text; a WebUI would take for commands: {shown}"


def shortened(text: str, limit: int = 60) -> str:
    """At most `limit` characters, with an ellipsis for the rest."""
    return text if len(text) <= limit else f"{text[: limit - 1].rstrip()}…"
