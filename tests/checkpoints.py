"""Random weights in Stable Diffusion 1.5's shapes, in both layouts that people have: a folder and one file."""

import math

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

from raft_diffusion import sd15
from raft_diffusion.diffusion import ldm


def write_model(folder, file, *, dtype=torch.float16):
    """Write the same weights, of the sizes in `sd15.config`, into the empty `folder` and into `file`.

    Returns the number of the UNet's parameters.
    """
    with init_empty_weights():
        unet = UNet2DConditionModel.from_config(sd15.config("unet"))
        vae = AutoencoderKL.from_config(sd15.config("vae"))
        text = CLIPTextModel(CLIPTextConfig(**sd15.config("text_encoder")))
    draw = _noise(dtype)
    unet, vae = (_filled(model, draw) for model in (unet, vae))
    text = {f"text_model.{name}": tensor for name, tensor in _filled(text, draw).items()}
    sd15.write_skeleton(folder)
    save_file(unet, folder / "unet" / "diffusion_pytorch_model.safetensors")
    save_file(vae, folder / "vae" / "diffusion_pytorch_model.safetensors")
    save_file(text, folder / "text_encoder" / "model.safetensors", metadata={"format": "pt"})
    save_file(ldm.to_ldm(unet, vae, text, config=sd15.config("unet")), file)
    return sum(tensor.numel() for tensor in unet.values())


def _noise(dtype):
    """Cuts of one block of noise, each from its own place: a thousand times faster than drawing a billion numbers."""
    block = torch.rand(4_000_037, generator=torch.Generator().manual_seed(0)).mul(2).sub(1).to(dtype)
    place = 0

    def draw(count):
        nonlocal place
        place = (place + 1_234_577) % len(block)
        return torch.cat([block[place:], block.repeat(count // len(block) + 1)])[:count]

    return draw


def _filled(model, draw):
    """Norms that do nothing, no biases, and layers as torch begins with them: uniform within 1 / sqrt(inputs)."""
    weights = {}
    for name, parameter in model.named_parameters():
        shape = parameter.shape
        if len(shape) == 1:
            weights[name] = torch.full(shape, float(name.endswith("weight")), dtype=draw(1).dtype)
        else:
            bound = 0.02 if "embedding" in name and "time" not in name else 1 / math.sqrt(math.prod(shape[1:]))
            weights[name] = draw(shape.numel()).mul(bound).view(shape)
    return weights
