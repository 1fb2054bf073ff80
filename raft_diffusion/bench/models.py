"""The objects of the round that is measured: loaded, or of Stable Diffusion 1.5's size with random weights.

Speed and memory do not depend on what the weights are, so that nothing has to be downloaded.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import assemble, sd15
from ..checks import POCKET
from ..core.config import Config
from ..modality import Progress
from ..planning.networks import USUAL_TOWER
from ..process import pick_device


def make_subject(config: Config, *, random_weights: bool, tell: Progress | None = None) -> tuple[Any, list[Any]]:
    """(policy with a fresh adapter, its towers). tell: the policy's progress.

    Of any but the carried model the tower is a ViT-L-14 with random weights: the usual one, and large to download.
    Raises ValueError for a model or a device that cannot be used.
    """
    components = random_components(config) if random_weights else None
    policy = assemble.make_policy(config, tell, components=components)
    towers = assemble.make_rewards(config) if config.model == POCKET else [random_tower(config)]
    return policy, towers


def random_components(config: Config) -> Any:
    """A model of the published configuration, its weights as torch's layers begin with them."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel  # pyright: ignore
    from transformers import CLIPTextConfig, CLIPTextModel

    from ..diffusion import Components, choose_dtype

    device = pick_device(config.device)
    dtype = choose_dtype(config.precision, device)
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(config.seed)
        parts: dict[str, Any] = {
            "unet": UNet2DConditionModel.from_config(sd15.config("unet")),
            "vae": AutoencoderKL.from_config(sd15.config("vae")),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**sd15.config("text_encoder"))),
        }
    for part in parts.values():
        torch.nn.Module.to(part.requires_grad_(False).eval(), dtype)  # diffusers' own `to` warns of every cast
    return Components(**parts, tokenizer=_tokenizer(), scheduler_config=sd15.config("scheduler"), name="random weights")


def _tokenizer() -> Any:
    from transformers import CLIPTokenizer

    from ..sd15.tokenizer import write_tokenizer

    with tempfile.TemporaryDirectory() as name:
        write_tokenizer(Path(name))
        return CLIPTokenizer.from_pretrained(name, local_files_only=True)


def random_tower(config: Config) -> Any:
    """A tower of `tower_config`'s size that gives `text_image` and `aesthetic`."""
    import open_clip
    import torch

    from ..diffusion import choose_dtype
    from ..rewards.clip import ClipTower

    device, layout = pick_device(config.device), tower_config()
    tokenize: Any = open_clip.get_tokenizer(USUAL_TOWER)
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(config.seed)
        model = open_clip.CLIP(**layout)
        head = torch.nn.Linear(layout["embed_dim"], 1)
    return ClipTower(
        model,
        tokenize,
        mean=open_clip.OPENAI_DATASET_MEAN,
        std=open_clip.OPENAI_DATASET_STD,
        heads={"aesthetic": head},
        device=device,
        dtype=choose_dtype("auto", device),
    )


def tower_config() -> Mapping[str, Any]:
    """The usual tower's, as open_clip has it."""
    import open_clip

    config = open_clip.get_model_config(USUAL_TOWER)
    assert config is not None
    return config
