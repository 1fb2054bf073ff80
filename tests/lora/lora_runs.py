"""Run folders with a LoRA in them, as a training leaves them, and the layers of Stable Diffusion 1.5 for it."""

import json

import torch
from accelerate import init_empty_weights
from diffusers import UNet2DConditionModel
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

from raft_diffusion import sd15
from raft_diffusion.core.config import Config
from raft_diffusion.core.records import Draw, Prompt

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj")
CONFIG = """
name = "monet-cat"
model = "stable-diffusion-v1-5/stable-diffusion-v1-5"
rounds = 2
[prompts]
train = ["monet style cat", "monet style dog"]
[rewards.weights]
text_image = 1.0
aesthetic = 0.5
"""
STARTED = "2026-11-21T07:04:14+00:00"


def full_models():
    """Stable Diffusion 1.5's UNet and text encoder; their weights are never written, so they take up no memory."""
    with init_empty_weights():
        unet = UNet2DConditionModel.from_config(sd15.config("unet"))
        text = CLIPTextModel(CLIPTextConfig(**sd15.config("text_encoder")))
    return {"unet": unet.to_empty(device="cpu"), "text_encoder": text.to_empty(device="cpu")}


def layers(model, *, attention):
    """Name -> shape of the weights that a LoRA can sit on; without the four that kohya leaves out."""
    found = {
        name: tuple(module.weight.shape)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
        and name not in ("conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2")
    }
    return {name: shape for name, shape in found.items() if not attention or name.endswith(ATTENTION)}


def draw_lora(parts, *, rank, seed=0):
    """parts: "unet" or "text_encoder" -> layers. Random A and B under the names of diffusers' format."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for part, found in parts.items():
        prefix = f"{part}." + ("text_model." if part == "text_encoder" else "")
        for name, (out, inputs, *kernel) in found.items():
            down = torch.randn(rank, inputs, *kernel, generator=generator) / inputs**0.5
            up = 0.01 * torch.randn(out, rank, *[1] * len(kernel), generator=generator)
            tensors |= {f"{prefix}{name}.lora_A.weight": down, f"{prefix}{name}.lora_B.weight": up}
    return tensors


def adapter_metadata(tensors, *, rank, alpha):
    parts = sorted({name.partition(".")[0] for name in tensors})
    said = {}
    for part in parts:
        names = {name.rpartition(".lora_")[0].partition(".")[2] for name in tensors if name.startswith(part)}
        names = {name.removeprefix("text_model.") for name in names}
        said |= {f"{part}.r": rank, f"{part}.lora_alpha": alpha, f"{part}.target_modules": sorted(names)}
    return said


def write_run(folder, tensors, *, rank, alpha, config=CONFIG, rounds=2, evaluated=False, said=None):
    """A run whose rounds all hold this LoRA; in each, two of four pictures won."""
    folder.mkdir()
    config = Config.parse(config)
    (folder / "config.toml").write_text(config.to_toml(), encoding="utf-8")
    (folder / "environment.json").write_text(json.dumps({"started": STARTED, "system": "Linux x86_64"}))
    said = adapter_metadata(tensors, rank=rank, alpha=alpha) if said is None else said
    for index in range(1, rounds + 1):
        round_ = folder / "rounds" / f"{index:03d}"
        (round_ / "adapter").mkdir(parents=True)
        (round_ / "candidates").mkdir()
        (round_ / "round.json").write_text("{}")
        rows = []
        for prompt in config.train_prompts():
            for k in range(2):
                draw = Draw(Prompt(prompt.text), k, 7)
                row = {"file_name": f"{draw.id}.png", "text": prompt.text, "negative": "", "prompt_weight": 1.0}
                row |= {"id": draw.id, "group": 0, "k": k, "seed": 7, "scores": {"text_image": float(k)}, "key": k}
                rows.append(json.dumps(row | {"winner": k == 1}))
        (round_ / "candidates" / "metadata.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
        file = round_ / "adapter" / "pytorch_lora_weights.safetensors"
        save_file(tensors, file, metadata={"lora_adapter_metadata": json.dumps(said)})
    if evaluated:
        _evaluate(folder / "evaluation", config)
    return folder


def _evaluate(folder, config):
    """Three pairs: red before, blue after."""
    examples = []
    for side, colour in (("before", "red"), ("after", "blue")):
        (folder / side).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (config.sampling.width, config.sampling.height), colour).save(
                folder / side / f"{number}.png"
            )
    for number in range(3):
        examples.append({"before": f"before/{number}.png", "after": f"after/{number}.png", "text": "monet style cat"})
    row = {"base": 20.0, "tuned": 26.25, "difference": 6.25, "ci95": [5.125, 7.5], "pairs": 64, "oracle": 30.0}
    result = {"judge": {}, "rewards": {"text_image": row}, "examples": examples, "settings": {}}
    (folder / "evaluation.json").write_text(json.dumps(result))
