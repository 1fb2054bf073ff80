"""RAFT for Stable Diffusion as its authors' notebook goes about it, on the carried model; written from its description.

Pictures go through PNG files; each is scored by itself, in a pool of threads. The best of ten in each of ten contests,
and of those the better eight, are what a new process learns from: it loads everything again, encodes the pictures by
the VAE and the words by the text encoder at every step, and takes up its optimiser where the last one stopped. 50 steps
of DPM-Solver a picture, five pictures a call; 80 optimiser steps of 8 with gradient checkpointing, a constant learning
rate, seed 1234. The learning rate, the LoRA, the guidance and the rewards are the job's: the published rate of 9e-6 is
for a far larger model and would learn nothing here.

    authors.py notebook FOLDER --seed 0 --rounds 4 --began 0     all rounds; `peers.py` calls it
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

CALL = 5  # pictures a call of the pipeline
SAMPLING_STEPS = 50
TRAINING_SEED = 1234
LORA = "pytorch_lora_weights.safetensors"


def notebook(folder: Path, *, seed: int, rounds: int, began: float, steps: int) -> None:
    """Write FOLDER/NNN/lora for each round, and FOLDER/times.json: seconds since `began` after each."""
    import torch
    from curves import settings
    from diffusers import DPMSolverMultistepScheduler

    from raft_diffusion import pocket
    from raft_diffusion.rewards.clip import ClipTower

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    config = settings(seed=seed, recipe="paper")
    pipe = load()
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    tower = ClipTower.load(pocket.CLIP)
    times: list[float] = []
    for number in range(1, rounds + 1):
        here, before = folder / f"{number:03d}", folder / f"{number - 1:03d}" / "lora"
        if number > 1:
            pipe.unload_lora_weights()
            pipe.load_lora_weights(str(before))
        contests = draw(pipe, config, here / "pictures", steps=steps)
        choose(tower, config, contests, here / "train")
        command = [sys.executable, __file__, "train", str(here), "--seed", str(seed)]
        subprocess.run([*command, *(["--start", str(before)] if number > 1 else [])], check=True)
        times.append(time.time() - began)
    (folder / "times.json").write_text(json.dumps(times) + "\n", encoding="utf-8")


def load() -> Any:
    """The carried model; its file is float16, which a CPU does not compute in."""
    import torch
    from diffusers import StableDiffusionPipeline

    from raft_diffusion import pocket

    options = {"dtype": torch.float32, "safety_checker": None, "local_files_only": True}
    return StableDiffusionPipeline.from_pretrained(pocket.MODEL, **options)


def draw(pipe: Any, config: Any, folder: Path, *, steps: int) -> list[list[Path]]:
    """The pictures of each contest as PNG files."""
    folder.mkdir(parents=True)
    sampling, prompt = config.sampling, config.train_prompts()[0].text
    contests: list[list[Path]] = []
    for contest in range(sampling.groups_per_prompt):
        paths = [folder / f"{contest:02d}-{k:02d}.png" for k in range(sampling.samples_per_prompt)]
        for start in range(0, len(paths), CALL):
            part = paths[start : start + CALL]
            images = pipe(
                [prompt] * len(part),
                height=sampling.height,
                width=sampling.width,
                num_inference_steps=steps,
                guidance_scale=sampling.guidance_scale,
            ).images
            for path, image in zip(part, images, strict=True):
                image.save(path)
        contests.append(paths)
    return contests


def choose(tower: Any, config: Any, contests: list[list[Path]], folder: Path) -> None:
    """Copy the best of the contests' best, with their words, to `folder`."""
    from PIL import Image

    from raft_diffusion.core.records import Draw, Sample
    from raft_diffusion.diffusion import Picture

    prompt = config.train_prompts()[0]

    def score(path: Path) -> float:
        with Image.open(path) as image:
            sample = Sample(Draw(prompt, 0, 0), Picture(None, image.convert("RGB")))  # type: ignore[arg-type]
        scores = tower([sample])
        return sum(weight * scores[name][0] for name, weight in config.rewards.weights.items())

    every = [path for paths in contests for path in paths]
    with ThreadPoolExecutor() as pool:
        scores = dict(zip(every, pool.map(score, every), strict=True))
    best = sorted((max(paths, key=scores.__getitem__) for paths in contests), key=scores.__getitem__, reverse=True)
    kept = best[: round(config.selection.top_fraction * len(best))]
    folder.mkdir()
    for path in kept:
        shutil.copy(path, folder)
    rows = (json.dumps({"file_name": path.name, "text": prompt.text}) + "\n" for path in kept)
    (folder / "metadata.jsonl").write_text("".join(rows), encoding="utf-8")


def train(here: Path, *, seed: int, start: Path | None) -> None:
    """The process of one round's finetuning: HERE/train is learned, HERE/lora written. start: the round before."""
    import torch
    from curves import settings
    from diffusers import DDPMScheduler, StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
    from torch.utils.data import DataLoader

    torch.set_num_threads(1)
    torch.manual_seed(TRAINING_SEED)
    config = settings(seed=seed, recipe="paper")
    tuning = config.tuning
    pipe = load()
    unet, vae, encoder, tokenizer = pipe.unet, pipe.vae, pipe.text_encoder, pipe.tokenizer
    for model in (unet, vae, encoder):
        model.requires_grad_(False)
    layers = ["to_q", "to_k", "to_v", "to_out.0"]
    unet.add_adapter(LoraConfig(r=tuning.rank, lora_alpha=tuning.alpha, target_modules=layers))
    unet.enable_gradient_checkpointing()
    unet.train()
    weights = [weight for weight in unet.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=tuning.learning_rate)
    if start is not None:
        state = torch.load(start / "state.pt", weights_only=True)
        set_peft_model_state_dict(unet, state["lora"])
        optimizer.load_state_dict(state["optimizer"])
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    loader = DataLoader(Pictures(here / "train", tokenizer), batch_size=8, shuffle=True)
    done, target = 0, tuning.steps
    while done < target:
        for pixels, ids in loader:
            latents = vae.encode(pixels).latent_dist.sample() * vae.config.scaling_factor
            noise = torch.randn_like(latents)
            timesteps = torch.randint(scheduler.config.num_train_timesteps, (len(latents),))
            noisy = scheduler.add_noise(latents, noise, timesteps)
            predicted = unet(noisy, timesteps, encoder(ids)[0]).sample
            loss = torch.nn.functional.mse_loss(predicted.float(), _target(scheduler, latents, noise, timesteps))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            done += 1
            if done == target:
                break
    lora = get_peft_model_state_dict(unet)
    (here / "lora").mkdir()
    StableDiffusionPipeline.save_lora_weights(str(here / "lora"), convert_state_dict_to_diffusers(lora))
    torch.save({"lora": lora, "optimizer": optimizer.state_dict()}, here / "lora" / "state.pt")


def _target(scheduler: Any, latents: Any, noise: Any, timesteps: Any) -> Any:
    velocity = scheduler.config.prediction_type == "v_prediction"
    return scheduler.get_velocity(latents, noise, timesteps) if velocity else noise


class Pictures:
    """The chosen PNG files with their words, read anew each time."""

    def __init__(self, folder: Path, tokenizer: Any) -> None:
        lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
        self._rows = [json.loads(line) for line in lines]
        self._folder, self._tokenizer = folder, tokenizer

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: int) -> tuple[Any, Any]:
        from PIL import Image
        from torchvision.transforms.functional import normalize, to_tensor

        row = self._rows[place]
        with Image.open(self._folder / row["file_name"]) as image:
            pixels = normalize(to_tensor(image.convert("RGB")), [0.5], [0.5])
        tokens = self._tokenizer(row["text"], padding="max_length", truncation=True, return_tensors="pt")
        return pixels, tokens.input_ids[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("part", choices=("notebook", "train"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=SAMPLING_STEPS)
    parser.add_argument("--began", type=float, default=None, help="when the clock started, in seconds since 1970")
    parser.add_argument("--start", type=Path, default=None)
    given = parser.parse_args()
    if given.part == "train":
        train(given.folder, seed=given.seed, start=given.start)
    else:
        began = time.time() if given.began is None else given.began
        notebook(given.folder, seed=given.seed, rounds=given.rounds, began=began, steps=given.steps)


if __name__ == "__main__":
    main()
