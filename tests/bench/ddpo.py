"""Time to the same score of the judge: ours against DDPO (arXiv:2305.13301) as TRL has it, on the carried model.

    uv run --with trl==0.23.1 --with ftfy python tests/bench/ddpo.py --quick     does it work
    uv run --with trl==0.23.1 --with ftfy python tests/bench/ddpo.py             the search, then 20 minutes a seed

0.23.1 is the last release with a DDPOTrainer. Its rewards, LoRA, picture size, number of steps and guidance are those
of the same job; its sampler is DDIM with eta 1, which it needs. Its learning rate and its pictures an epoch are tried
first, each pair for the same time. The pair with the highest reward at the end is used: the judge has no say in it.
Every trial of the search is kept. Both programs run on one thread; what the judge takes counts for neither. Ours is the
run that `peers.py authors` makes. What is done lies in --out, and a second call goes on there.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from curves import compared, judge, kept, middle, settings, to_their_best, told, write_svg
from peers import LEVELS, SVG, curve, learn
from rich.console import Console
from rich.table import Table

RATES = (3e-4, 1e-3, 3e-3, 1e-2)
EPOCHS = (32, 64, 128)  # pictures sampled before the weights change
STEPS_AN_EPOCH = 2  # optimiser steps on them, as the paper has it
CALL = 32  # pictures sampled at once
PASS = 16  # pictures a forward and backward pass
LAST = 0.25  # share of a trial in which its reward is read
FILE = "pytorch_lora_weights.safetensors"


def train(folder: Path, *, seed: int, rate: float, images: int, budget: float, keep: int, began: float) -> None:
    """DDPO for `budget` seconds since `began`. FOLDER/epochs.jsonl has a line an epoch: its end, without the time that
    writing weights takes, and the mean reward of what it sampled. FOLDER/NNNN/ holds the LoRA, about `keep` times.
    """
    import torch
    from accelerate import PartialState
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft.utils import get_peft_model_state_dict
    from trl import DDPOConfig, DDPOTrainer

    torch.set_num_threads(1)
    PartialState(cpu=True)  # the trainer's logger needs one before there is an accelerator
    job = settings(seed=seed)
    pipe, rewards = make_pipeline(job), []
    config = DDPOConfig(
        seed=seed,
        sample_num_steps=job.sampling.num_inference_steps,
        sample_guidance_scale=job.sampling.guidance_scale,
        sample_batch_size=CALL,
        sample_num_batches_per_epoch=images // CALL,
        train_batch_size=PASS,
        train_gradient_accumulation_steps=max(1, images // PASS // STEPS_AN_EPOCH),
        train_learning_rate=rate,
        mixed_precision="no",  # the default is float16, which a CPU does not learn in
        accelerator_kwargs={"cpu": True},
        save_freq=10**9,
        log_with=None,
    )
    trainer = DDPOTrainer(config, make_reward(job, rewards), lambda: (job.train_prompts()[0].text, {}), pipe)
    now, spent, written, epoch, step = 0.0, 0.0, 0, 0, 0
    with (folder / "epochs.jsonl").open("w", encoding="utf-8") as lines:
        while not epoch or now < budget:
            rewards.clear()
            step = trainer.step(epoch, step)
            epoch += 1
            now = time.time() - began - spent
            row = {"epoch": epoch, "seconds": now, "reward": statistics.fmean(rewards)}
            row["broken"] = not all(weight.isfinite().all() for weight in trainer.trainable_layers)
            if row["broken"]:
                lines.write(json.dumps(row) + "\n")
                break
            if keep and now >= budget * (written + 1) / keep:
                paused = time.time()
                layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(pipe.unet))
                pipe.sd_pipeline.save_lora_weights(str(folder / f"{epoch:04d}"), layers)
                row["lora"], written = f"{epoch:04d}", int(now / budget * keep)
                spent += time.time() - paused
            lines.write(json.dumps(row) + "\n")
            lines.flush()
    (folder / "done").touch()


def make_pipeline(job: Any) -> Any:
    """TRL's pipeline around the carried model, with the job's LoRA, and DDIM as Stable Diffusion 1.5 configures it.

    With the carried model's own settings the last step would have no noise, and its probability would be no number.
    """
    from diffusers import DDIMScheduler
    from peft import LoraConfig
    from trl.models import DefaultDDPOStableDiffusionPipeline

    from raft_diffusion import pocket

    class Pipeline(DefaultDDPOStableDiffusionPipeline):
        """Its own LoRA is of rank 4."""

        def get_trainable_layers(self) -> Any:
            layers = ["to_q", "to_k", "to_v", "to_out.0"]
            lora = LoraConfig(r=job.tuning.rank, lora_alpha=job.tuning.alpha, target_modules=layers)
            self.sd_pipeline.unet.add_adapter(lora)
            return self.sd_pipeline.unet

    pipe = Pipeline(str(pocket.MODEL), use_lora=True)
    usual = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, "timestep_spacing": "leading"}
    pipe.sd_pipeline.scheduler = DDIMScheduler.from_config(pipe.sd_pipeline.scheduler.config, **usual)
    side = pipe.sd_pipeline.unet.config.sample_size * pipe.sd_pipeline.vae_scale_factor  # the trainer asks for no other
    assert side == job.sampling.width == job.sampling.height, side
    return pipe


def make_reward(job: Any, seen: list[float]) -> Any:
    """The job's weighted sum of a tower's scores; what it says is added to `seen`."""
    import torch
    from PIL import Image

    from raft_diffusion import pocket
    from raft_diffusion.core.records import Draw, Prompt, Sample
    from raft_diffusion.diffusion import Picture
    from raft_diffusion.rewards.clip import ClipTower

    tower = ClipTower.load(pocket.CLIP)

    def reward(images: Any, prompts: Sequence[str], _: Any) -> tuple[Any, dict[str, Any]]:
        arrays = (images.float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        pictures = [Picture(None, Image.fromarray(array)) for array in arrays]  # type: ignore[arg-type]
        samples = [
            Sample(Draw(Prompt(text), k, 0), p) for k, (text, p) in enumerate(zip(prompts, pictures, strict=True))
        ]
        scores = tower(samples)
        sums = [sum(w * scores[name][k] for name, w in job.rewards.weights.items()) for k in range(len(samples))]
        seen.extend(sums)
        return torch.tensor(sums), {}

    return reward


def run(folder: Path, **options: Any) -> list[dict[str, Any]]:
    """Train in a process of its own, unless that has been done. A run that failed to learn leaves its reason."""
    if not (folder / "done").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
        command = [sys.executable, __file__, "--folder", str(folder), *flags, "--began", str(time.time())]
        with (folder / "log.txt").open("w", encoding="utf-8") as log:
            subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT)
    return [json.loads(line) for line in (folder / "epochs.jsonl").read_text(encoding="utf-8").splitlines()]


def reached(rows: Sequence[dict[str, Any]]) -> float:
    """The mean reward of the last quarter of a trial's epochs. All trials start from the same base."""
    return statistics.fmean(row["reward"] for row in rows[-max(1, round(LAST * len(rows))) :])


def search(given: argparse.Namespace, console: Console) -> list[dict[str, Any]]:
    """Each learning rate with each number of pictures an epoch, for the same time; the best comes first, and what broke
    the weights last."""
    trials = []
    for images in given.epochs:
        for rate in given.rates:
            rows = run(
                given.out / f"search-{rate:g}-{images}", seed=100, rate=rate, images=images, budget=given.trial, keep=0
            )
            trial = {"rate": rate, "images": images, "reward": reached(rows), "broken": rows[-1]["broken"]}
            trials.append({**trial, "epochs": rows})
            console.print(f"rate {rate:g}, {images} pictures an epoch: reward {reached(rows):.2f}", highlight=False)
    return sorted(trials, key=lambda trial: (not trial["broken"], trial["reward"]), reverse=True)


def their_curve(folder: Path, rows: Sequence[dict[str, Any]], *, seed: int, pairs: int) -> list[tuple[float, float]]:
    base = kept(folder.parent / f"base-{seed}-{pairs}.json", lambda: judge(None, seed=seed, pairs=pairs))
    points = [(0.0, base)]
    for row in rows:
        if name := row.get("lora"):
            path = folder / name / FILE
            file = folder / f"judged-{name}-{pairs}.json"
            points.append((row["seconds"], kept(file, lambda path=path: judge(path, seed=seed, pairs=pairs))))
    return points


def compare(given: argparse.Namespace, console: Console) -> dict[str, Any]:
    trials = search(given, console)
    best = trials[0]
    console.print(f"chosen: rate {best['rate']:g}, {best['images']} pictures an epoch", highlight=False)
    mine, theirs = [], []
    for seed in range(given.repeats):
        folder = given.out / f"ours-{seed}"
        program = [str(Path(__file__).with_name("peers.py")), "learn", str(folder)]
        told = ["--recipe", given.recipe, "--rounds", str(given.rounds), "--seed", str(seed)]
        times = learn(folder, [*program, *told])
        mine.append(curve(folder, times, seed=seed, pairs=given.pairs))
        folder = given.out / f"ddpo-{seed}"
        options = {"rate": best["rate"], "images": best["images"], "budget": given.budget, "keep": given.keep}
        rows = run(folder, seed=seed, **options)
        theirs.append(their_curve(folder, rows, seed=seed, pairs=given.pairs))
        console.print(f"seed {seed}: ours {mine[-1][-1]}, DDPO {theirs[-1][-1]} (seconds, judge)", highlight=False)
    result = {
        "to_their_best": to_their_best(mine, theirs),
        "levels": compared(mine, theirs, LEVELS),
        "best": {
            name: middle([max(s for _, s in c) for c in runs]) for name, runs in (("ours", mine), ("ddpo", theirs))
        },
        "budget": given.budget,
        "search": trials,
        "curves": {"ours": mine, "DDPO (TRL 0.23.1)": theirs},
        "pairs": given.pairs,
    }
    write_svg(given.out / SVG, result["curves"], title="monet style cat: object and style right, by the judge")
    show(console, result)
    return result


def show(console: Console, result: dict[str, Any]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("the judge's score", "ours, s", "DDPO, s", "ratio", "never: ours, DDPO"):
        table.add_column(column, justify="right")
    for name, row in [("DDPO's best", result["to_their_best"]), *(("level", row) for row in result["levels"])]:
        never = f"{row['mine_never']}, {row['theirs_never']}"
        cells = (told(row["mine"]), told(row["theirs"]), told(row["ratio"]), never)
        table.add_row(f"{name}: {100 * row['level']:.0f} %", *cells)
    console.print(table)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    add = parser.add_argument
    add("--quick", action="store_true", help="a look at whether it works, no measurement")
    add("--repeats", type=int, default=None, help="seeds; 5, quick 1")
    add("--trial", type=float, default=None, help="seconds of each trial of the search; 180, quick 1")
    add("--budget", type=float, default=None, help="seconds of a seed; 1200, quick 1")
    add("--rates", type=float, nargs="+", default=None, help="learning rates that are tried")
    add("--epochs", type=int, nargs="+", default=None, help=f"pictures an epoch that are tried, multiples of {CALL}")
    add("--keep", type=int, default=None, help="LoRAs of a seed that the judge sees; 12, quick 1")
    add("--recipe", default="quick", help="ours; `default` is the preset itself")
    add("--rounds", type=int, default=0, help="of ours; those of the recipe")
    add("--pairs", type=int, default=None, help="pictures that the judge sees; 256, quick 32")
    add("--out", type=Path, default=None, help="what is done; a second call goes on there")
    add("--json", type=Path, default=None)
    for name, kind in (("folder", Path), ("seed", int), ("rate", float), ("images", int), ("began", float)):
        add(f"--{name}", type=kind, default=None, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    given.out = given.out or Path("runs") / ("ddpo-quick" if given.quick else "ddpo")
    full = {"repeats": 5, "trial": 180.0, "budget": 1200.0, "rates": RATES, "epochs": EPOCHS}
    full |= {"keep": 12, "pairs": 256}
    quick = {"repeats": 1, "trial": 1.0, "budget": 1.0, "rates": RATES[1:2], "epochs": EPOCHS[:1]}
    quick |= {"keep": 1, "pairs": 32}
    for name, value in (quick if given.quick else full).items():
        if getattr(given, name) is None:
            setattr(given, name, value)
    return given


def main(arguments: list[str] | None = None) -> int:
    given = parse(arguments)
    if given.folder is not None:
        options = {name: getattr(given, name) for name in ("seed", "rate", "images", "budget", "keep", "began")}
        train(given.folder, **options)
        return 0
    result = compare(given, Console(width=120))
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
