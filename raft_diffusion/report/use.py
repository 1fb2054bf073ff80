"""How to use the run's LoRA, on the report's page: the lines for each program, from the run folder alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..lora.metadata import POCKET, default_stem, trigger_words
from ..webui import find_scheduler
from .reader import Reader, is_number, round_names, table

LORA = "pytorch_lora_weights.safetensors"
COMFY_SAMPLERS = {  # WebUIs' name -> that of ComfyUI's node KSampler
    "Euler": "euler",
    "Euler a": "euler_ancestral",
    "Heun": "heun",
    "DPM2": "dpm_2",
    "DPM2 a": "dpm_2_ancestral",
    "DPM++ 2M": "dpmpp_2m",
    "DPM++ 2M SDE": "dpmpp_2m_sde",
    "DPM++ 3M SDE": "dpmpp_3m_sde",
    "UniPC": "uni_pc",
    "DDIM": "ddim",
    "DDPM": "ddpm",
    "LCM": "lcm",
    "DEIS": "deis",
}
COMFY_SCHEDULERS = {
    "": "normal",
    "Uniform": "normal",
    "Karras": "karras",
    "Exponential": "exponential",
    "SGM Uniform": "sgm_uniform",
    "Simple": "simple",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """adapter: the folder in the run that holds the LoRA; finished: whether it is the run's result. file: what export
    calls it; exported: where that is already, or empty. trigger: the words that all its prompts share, or empty."""

    is_pocket: bool
    adapter: str
    finished: bool
    file: str
    exported: str
    trigger: str
    weight: str
    automatic1111: str
    comfyui: str
    diffusers: str


def read_use(
    reader: Reader, config: Mapping[str, Any], evaluated: Mapping[str, Any], prompts: Iterable[str], example: str
) -> Use | None:
    """None where there is no LoRA yet. evaluated: the evaluation's settings, where there was one; prompts: those that
    were trained; example: one to show."""
    places = ("lora", *(f"rounds/{name}/adapter" for name in reversed(round_names(reader))))
    adapter = next((place for place in places if reader.has(f"{place}/{LORA}")), None)
    if adapter is None:
        return None
    is_pocket = config.get("model") == POCKET
    sampling = {**table(config.get("sampling")), **evaluated}
    stem = default_stem(str(config.get("name", reader.name)), None, is_pocket=is_pocket)
    scale = sampling.get("lora_scale")
    weight = f"{scale:g}" if is_number(scale) else "1"
    file = f"{stem}.safetensors"
    return Use(
        is_pocket=is_pocket,
        adapter=adapter,
        finished=adapter == "lora",
        file=file,
        exported=f"export/{file}" if reader.has(f"export/{file}") else "",
        trigger=trigger_words(prompts),
        weight=weight,
        automatic1111=_automatic1111(sampling, f"{example} <lora:{stem}:{weight}>"),
        comfyui=_comfyui(sampling, file, weight, example),
        diffusers=_diffusers(config, sampling, adapter, weight, example),
    )


def _sampler(sampling: Mapping[str, Any]) -> tuple[str, str]:
    """(sampler, schedule type) as WebUIs call them, or what the settings say where they know no such sampler."""
    name = str(sampling.get("scheduler", "DPM++ 2M"))
    try:
        known = find_scheduler(name)
    except ValueError:
        return name, ""
    return known.sampler, known.schedule_type


def _size(sampling: Mapping[str, Any]) -> tuple[str, str]:
    return str(sampling.get("width", 512)), str(sampling.get("height", 512))


def _automatic1111(sampling: Mapping[str, Any], prompt: str) -> str:
    """What the prompt box takes: the prompt with the LoRA, and the settings in the line that its arrow button reads."""
    (sampler, schedule), (width, height) = _sampler(sampling), _size(sampling)
    negative = str(sampling.get("negative_prompt") or "")
    settings = {
        "Steps": sampling.get("num_inference_steps", 25),
        "Sampler": sampler,
        "Schedule type": schedule,
        "CFG scale": sampling.get("guidance_scale", 7.5),
        "Size": f"{width}x{height}",
        "Clip skip": sampling.get("clip_skip", 1) if sampling.get("clip_skip", 1) != 1 else "",
    }
    lines = [prompt, *([f"Negative prompt: {negative}"] if negative else [])]
    return "\n".join([*lines, ", ".join(f"{name}: {value}" for name, value in settings.items() if value != "")])


def _comfyui(sampling: Mapping[str, Any], file: str, weight: str, prompt: str) -> str:
    """The nodes with what goes into each."""
    (sampler, schedule), (width, height) = _sampler(sampling), _size(sampling)
    steps, scale = sampling.get("num_inference_steps", 25), sampling.get("guidance_scale", 7.5)
    return "\n".join(
        [
            f"Load LoRA           lora_name {file}, strength_model {weight}, strength_clip {weight}",
            f"CLIP Text Encode    {prompt}",
            f"Empty Latent Image  width {width}, height {height}",
            f"KSampler            steps {steps}, cfg {scale}, sampler_name {COMFY_SAMPLERS.get(sampler, sampler)}, "
            f"scheduler {COMFY_SCHEDULERS.get(schedule, 'normal')}",
        ]
    )


def _diffusers(config: Mapping[str, Any], sampling: Mapping[str, Any], adapter: str, weight: str, prompt: str) -> str:
    """The lines of Python that sample with the LoRA, at the settings of the evaluation."""
    names = ("width", "height", "num_inference_steps", "guidance_scale")
    call = "".join(f", {name}={sampling[name]}" for name in names if is_number(sampling.get(name)))
    if negative := str(sampling.get("negative_prompt") or ""):
        call += f", negative_prompt={negative!r}"
    if weight != "1":
        call += f', cross_attention_kwargs={{"scale": {weight}}}'
    lines = ["from diffusers import StableDiffusionPipeline"]
    if config.get("model") == POCKET:
        lines += ["from raft_diffusion.diffusion.load import resolve_model", ""]
        lines += ['pipe = StableDiffusionPipeline.from_pretrained(resolve_model("pocket"))']
    else:
        model = str(config.get("model") or "the base model")
        load = "from_single_file" if model.endswith(".safetensors") else "from_pretrained"
        lines = ["import torch", *lines, ""]
        lines += [f"pipe = StableDiffusionPipeline.{load}({model!r}, dtype=torch.float16)", 'pipe.to("cuda")']
    lines += [f'pipe.load_lora_weights("{adapter}")', f'pipe({prompt!r}{call}).images[0].save("picture.png")']
    return "\n".join(lines)
