"""Pictures tuned on a second: ours, and as diffusers' script for a text-to-image LoRA goes about it.

    uv run python tests/bench/tuning.py --quick                                            on the carried model
    uv run python tests/bench/tuning.py --random-weights --size 512 --device cuda --batch 4

The script's procedure is written by us from its documentation: pictures come from PNG files through a DataLoader with a
random flip, the VAE encodes them and the text encoder their words at every step, then come noise, the UNet with a LoRA
of rank 4 on its attention, AdamW with weight decay and gradient clipping. Ours learns from latents that are there
already, and encodes each text once. The LoRA, the batch, the precision and the pictures are the same. Both take turns;
the ratio is taken within a repeat.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from curves import middle, told
from peers import base
from rich.console import Console

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
RANK = 4
PICTURES = 32


def configure(given: argparse.Namespace) -> Any:
    from raft_diffusion.bench.setup import bench_config
    from raft_diffusion.sd15 import HUB_ID

    changes = [
        f"tuning.steps={given.steps}",
        f"tuning.batch_size={given.batch}",
        f"tuning.rank={RANK}",
        f"tuning.alpha={RANK}",
        'tuning.targets=["attention"]',
        "tuning.condition_drop=0",
    ]
    if given.device.startswith("cuda"):
        changes.append("precision=fp16")
    model = HUB_ID if given.random_weights else None
    return bench_config(model=model, device=given.device, threads=given.threads, size=given.size, changes=changes)


def pictures(config: Any) -> list[Any]:
    """Noise: what a step costs does not depend on what it shows."""
    import numpy as np
    from PIL import Image

    shape = (config.sampling.height, config.sampling.width, 3)
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 256, shape, dtype=np.uint8)) for _ in range(PICTURES)]


def ours(config: Any, images: Sequence[Any]) -> Callable[[], None]:
    """One tuning of the job's steps, on latents that were kept."""
    import torch

    from raft_diffusion import assemble
    from raft_diffusion.core.records import Draw, Sample, Scored, Winner
    from raft_diffusion.diffusion import Picture

    policy = base(config)
    policy.add_adapter(rank=RANK, alpha=RANK, targets=("attention",), seed=0)
    parts, prompt = policy.components, config.train_prompts()[0]
    cell = (config.sampling.height // parts.scale_factor, config.sampling.width // parts.scale_factor)
    shape = (parts.unet.config["in_channels"], *cell)
    samples = [Sample(Draw(prompt, k, k), Picture(torch.randn(shape), image)) for k, image in enumerate(images)]
    winners = [Winner(Scored(sample, {}), key=0.0) for sample in samples]

    def work() -> None:
        assemble.make_tuner(config, None)(policy, winners, seed=0)

    return work


class Pictures:
    """PNG files and their words, as the script's data set."""

    def __init__(self, folder: Path, count: int, ids: Any) -> None:
        from torchvision import transforms

        self._folder, self._count, self._ids = folder, count, ids
        self._transform = transforms.Compose(
            [transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize([0.5], [0.5])]
        )

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place: int) -> tuple[Any, Any]:
        from PIL import Image

        with Image.open(self._folder / f"{place}.png") as image:
            return self._transform(image.convert("RGB")), self._ids


def theirs(config: Any, images: Sequence[Any], folder: Path) -> Callable[[], None]:
    import torch
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from diffusers import DDPMScheduler
    from peft import LoraConfig
    from torch.utils.data import DataLoader

    for place, image in enumerate(images):
        image.save(folder / f"{place}.png")
    parts = base(config).components
    unet, vae, encoder, tokenizer = parts.unet, parts.vae, parts.text_encoder, parts.tokenizer
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=TARGETS))
    weights = [weight for weight in unet.parameters() if weight.requires_grad]
    for weight in weights:
        weight.data = weight.data.float()
    scheduler: Any = DDPMScheduler.from_config(parts.scheduler_config)
    text = config.train_prompts()[0].text
    ids = tokenizer(text, padding="max_length", truncation=True, return_tensors="pt").input_ids[0]
    velocity = scheduler.config.prediction_type == "v_prediction"
    cpu = parts.device.type == "cpu"

    def work() -> None:
        AcceleratorState._reset_state()
        accelerator = Accelerator(cpu=cpu, mixed_precision="fp16" if parts.dtype == torch.float16 else "no")
        loader = DataLoader(Pictures(folder, len(images), ids), batch_size=config.tuning.batch_size, shuffle=True)  # type: ignore[arg-type]
        optimizer: Any = accelerator.prepare(torch.optim.AdamW(weights, lr=1e-4, weight_decay=1e-2))
        done = 0
        while done < config.tuning.steps:
            for pixels, words in loader:
                with torch.no_grad():
                    latents = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.sample()
                    states = encoder(words.to(vae.device), return_dict=False)[0]
                latents = latents * vae.config.scaling_factor
                noise = torch.randn_like(latents)
                timesteps = torch.randint(scheduler.config.num_train_timesteps, (len(latents),), device=latents.device)
                noisy = scheduler.add_noise(latents, noise, timesteps)
                target = scheduler.get_velocity(latents, noise, timesteps) if velocity else noise
                with accelerator.autocast():
                    predicted = unet(noisy, timesteps, states, return_dict=False)[0]
                accelerator.backward(torch.nn.functional.mse_loss(predicted.float(), target.float()))
                accelerator.clip_grad_norm_(weights, 1.0)
                optimizer.step()
                optimizer.zero_grad()
                done += 1
                if done == config.tuning.steps:
                    break

    return work


def measure(given: argparse.Namespace) -> dict[str, Any]:
    import torch

    from raft_diffusion import assemble
    from raft_diffusion.bench.watch import wait_and_look

    config = configure(given)
    assemble.prepare(config.threads)
    images, device = pictures(config), torch.device(given.device)
    with tempfile.TemporaryDirectory() as name:
        works = {"ours": ours(config, images), "script": theirs(config, images, Path(name))}
        laps: dict[str, list[float]] = {name: [] for name in works}
        for repeat in range(given.repeats + 1):
            for name, work in works.items():
                began = wait_and_look(device)
                work()
                seconds = wait_and_look(device) - began
                if repeat:  # the first sets up kernels and memory
                    laps[name].append(seconds)
    count = given.steps * given.batch
    ratios = [theirs / mine for mine, theirs in zip(laps["ours"], laps["script"], strict=True)]
    speeds = {name: middle([count / seconds for seconds in row]) for name, row in laps.items()}
    return {"samples_per_second": speeds, "ratio": middle(ratios), "batch": given.batch, "steps": given.steps}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    add = parser.add_argument
    add("--quick", action="store_true", help="a look at whether it works, no measurement")
    add("--repeats", type=int, default=None, help="5, quick 1")
    add("--steps", type=int, default=None, help="of a tuning; 20, quick 2")
    add("--batch", type=int, default=8)
    add("--size", type=int, default=None, help="of the pictures' sides, px")
    add("--device", default="cpu")
    add("--threads", type=int, default=None)
    add("--random-weights", action="store_true", help="Stable Diffusion 1.5's size")
    add("--json", type=Path, default=None)
    given = parser.parse_args(arguments)
    given.repeats = given.repeats or (1 if given.quick else 5)
    given.steps = given.steps or (2 if given.quick else 20)
    result = measure(given)
    console = Console(width=120)
    for name, speed in result["samples_per_second"].items():
        console.print(f"{name}: {told(speed)} pictures a second", highlight=False)
    console.print(f"ours, times as fast: {told(result['ratio'])}", highlight=False)
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
