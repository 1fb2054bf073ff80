"""Side by side in one run, on the carried model: against the authors' procedure, and against diffusers' own pipeline.

    uv run python tests/bench/peers.py pipeline --quick           images a second, ours and the pipeline's
    uv run python tests/bench/peers.py authors --quick            time to the same score of the judge
    uv run python tests/bench/peers.py pipeline --random-weights --size 512 --device cuda --batch 8 --images 32

Every repeat runs all of them one after the other, in turns, and each ratio is taken within a repeat: the median of the
repeats is printed with their ends. What is done lies in --out, and a second call goes on there.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from curves import compared, judge, kept, middle, settings, to_their_best, told, write_svg
from rich.console import Console
from rich.table import Table

LEVELS = (0.5, 0.7, 0.8, 0.9, 0.95)
SVG = "curves.svg"

# --- against the authors' procedure -----------------------------------------------------------------------------------


def ours(folder: Path, *, seed: int, rounds: int, began: float, recipe: str, changes: Sequence[str]) -> None:
    """A run of this package in a process of its own; FOLDER/times.json as `authors.notebook` writes it.

    rounds: 0 for as many as the recipe has.
    """
    import raft_diffusion as rd

    config = settings(seed=seed, recipe=recipe, changes=[*([f"rounds={rounds}"] if rounds else []), *changes])
    times = [time.time() - began for _ in rd.Run(config, folder / "run").rounds()]
    (folder / "times.json").write_text(json.dumps(times) + "\n", encoding="utf-8")


def adapters(folder: Path, rounds: int) -> list[Path]:
    """The LoRA after each round, of either program."""
    mine = folder / "run"
    names = [f"{number:03d}" for number in range(1, rounds + 1)]
    return [mine / "rounds" / name / "adapter" if mine.exists() else folder / name / "lora" for name in names]


def learn(folder: Path, command: Sequence[str]) -> list[float]:
    """Run one of the programs from its start, unless it has been run: a half one would have the wrong times."""
    times = folder / "times.json"
    if not times.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        subprocess.run([sys.executable, *command, "--began", str(time.time())], check=True)
    return json.loads(times.read_text(encoding="utf-8"))


def curve(folder: Path, times: Sequence[float], *, seed: int, pairs: int) -> list[tuple[float, float]]:
    """(seconds, the judge's score) after each round; the base, which took no time, is the first."""
    base = kept(folder.parent / f"base-{seed}-{pairs}.json", lambda: judge(None, seed=seed, pairs=pairs))
    points = [(0.0, base)]
    for number, (seconds, lora) in enumerate(zip(times, adapters(folder, len(times)), strict=True), start=1):
        file, path = folder / f"judged-{number:03d}-{pairs}.json", lora / "pytorch_lora_weights.safetensors"
        points.append((seconds, kept(file, lambda path=path: judge(path, seed=seed, pairs=pairs))))
    return points


def authors(given: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Time to the same score of the judge, and at equal pictures, steps and tuning."""
    here = Path(__file__)
    steps = str(given.steps)
    programs = {
        "ours": [str(here), "learn", "--recipe", given.recipe, "--rounds", str(given.rounds)],
        "authors": [
            str(here.with_name("authors.py")),
            "notebook",
            "--steps",
            steps,
            "--rounds",
            str(given.their_rounds),
        ],
        "equal": [
            *(str(here), "learn", "--recipe", "paper", "--steps", steps),
            *("--rounds", str(given.equal_rounds)),
        ],
    }
    found: dict[str, list[Any]] = {name: [] for name in programs}
    spent: dict[str, list[list[float]]] = {name: [] for name in programs}
    for seed in range(given.repeats):
        for name, command in programs.items():
            folder = given.out / f"{name}-{seed}"
            times = learn(folder, [*command[:2], str(folder), *command[2:], "--seed", str(seed)])
            spent[name].append(times)
            if name != "equal":
                found[name].append(curve(folder, times, seed=seed, pairs=given.pairs))
            console.print(f"seed {seed}, {name}: {len(times)} rounds in {times[-1]:.0f} s", highlight=False)
    last = given.equal_rounds - 1
    pairs = zip(spent["authors"], spent["equal"], strict=True)
    result = {
        "to_their_best": to_their_best(found["ours"], found["authors"]),
        "levels": compared(found["ours"], found["authors"], LEVELS),
        "equal_work": {
            "rounds": given.equal_rounds,
            "ours": middle([times[last] for times in spent["equal"]]),
            "authors": middle([times[last] for times in spent["authors"]]),
            "ratio": middle([theirs[last] / mine[last] for theirs, mine in pairs]),
        },
        "curves": {name: found[name] for name in ("ours", "authors")},
        "pairs": given.pairs,
        "steps": given.steps,
        "recipe": given.recipe,
    }
    write_svg(given.out / SVG, result["curves"], title="monet style cat: object and style right, by the judge")
    show_authors(console, result)
    return result


def show_authors(console: Console, result: dict[str, Any]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("the judge's score", "ours, s", "authors, s", "ratio", "never: ours, authors"):
        table.add_column(column, justify="right")
    for name, row in [("their best", result["to_their_best"]), *(("level", row) for row in result["levels"])]:
        label = f"{name}: {100 * row['level']:.0f} %"
        never = f"{row['mine_never']}, {row['theirs_never']}"
        table.add_row(label, told(row["mine"]), told(row["theirs"]), told(row["ratio"]), never)
    equal = result["equal_work"]
    same = f"equal work, {equal['rounds']} rounds"
    table.add_row(same, told(equal["ours"]), told(equal["authors"]), told(equal["ratio"]), "")
    console.print(table)


# --- against diffusers' pipeline --------------------------------------------------------------------------------------


def pipeline(given: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Images a second of ours and of the pipeline, one image a call and at ours' own batch, and how alike they are."""
    config = pipeline_config(given)
    makers: dict[str, Callable[[], tuple[float, list[Any]]]] = pipeline_makers(config, batch=given.batch)
    for make in makers.values():
        make()  # sets up kernels and memory
    alike: list[dict[str, float]] = []

    def lap() -> dict[str, float]:
        found = {name: make() for name, make in makers.items()}
        alike.append(difference(found["ours"][1], found["pipeline, equal batch"][1]))
        return {name: seconds for name, (seconds, _) in found.items()} | alike[-1]

    key = f"{given.size or 0}-{given.images}-{given.batch}-{'random' if given.random_weights else 'pocket'}"
    laps = [kept(given.out / f"pipeline-{key}-{repeat}.json", lap) for repeat in range(given.repeats)]
    speeds = {name: middle([given.images / lap[name] for lap in laps]) for name in makers}
    ratios = {name: middle([lap[name] / lap["ours"] for lap in laps]) for name in makers if name != "ours"}
    result = {
        "images": given.images,
        "batch": given.batch,
        "images_per_second": speeds,
        "ratio": ratios,
        "largest_difference": max(lap["largest_difference"] for lap in laps),
        "share_of_levels_that_differ": max(lap["share_of_levels_that_differ"] for lap in laps),
    }
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("", "images a second", "ours, times as fast"):
        table.add_column(column, justify="left" if not column else "right")
    for name in makers:
        table.add_row(name, told(speeds[name]), told(ratios.get(name)))
    console.print(table)
    differ = 100 * result["share_of_levels_that_differ"]
    console.print(f"{differ:.3g} % of the levels differ, by {result['largest_difference']:.0f} of 255 at most")
    return result


def pipeline_config(given: argparse.Namespace) -> Any:
    """As the user of a preset samples: candidates' own settings differ by their guidance alone."""
    from raft_diffusion.bench.setup import bench_config
    from raft_diffusion.sd15 import HUB_ID

    return bench_config(
        model=HUB_ID if given.random_weights else None,
        device=given.device,
        threads=given.threads,
        size=given.size,
        images=given.images,
        changes=[f"sampling.batch_size={given.batch}"],
    )


def pipeline_makers(config: Any, *, batch: int) -> dict[str, Callable[[], tuple[float, list[Any]]]]:
    """Each makes the same pictures, and says how long it took. The two models share nothing."""
    import torch
    from diffusers import StableDiffusionPipeline

    from raft_diffusion import assemble
    from raft_diffusion.bench.watch import wait_and_look
    from raft_diffusion.diffusion.settings import make_scheduler

    assemble.prepare(config.threads)
    policy, other = base(config), base(config).components
    pipe: Any = StableDiffusionPipeline(
        vae=other.vae,
        text_encoder=other.text_encoder,
        tokenizer=other.tokenizer,
        unet=other.unet,
        scheduler=make_scheduler(config.sampling.scheduler, other.scheduler_config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    draws, user = assemble.make_draws(config, 1), assemble.user_settings(config)

    def timed(make: Callable[[], list[Any]]) -> tuple[float, list[Any]]:
        began = wait_and_look(other.device)
        images = make()
        return wait_and_look(other.device) - began, images

    def called(count: int) -> list[Any]:
        images: list[Any] = []
        for start in range(0, len(draws), count):
            part = draws[start : start + count]
            images += pipe(
                [draw.prompt.text for draw in part],
                height=user.height,
                width=user.width,
                num_inference_steps=user.num_inference_steps,
                guidance_scale=user.guidance_scale,
                generator=[torch.Generator("cpu").manual_seed(draw.seed) for draw in part],
            ).images
        return images

    return {
        "ours": lambda: timed(lambda: [sample.data.image for sample in policy.generate(draws, settings=user)]),
        "pipeline, one image a call": lambda: timed(lambda: called(1)),
        "pipeline, equal batch": lambda: timed(lambda: called(batch)),
    }


def base(config: Any) -> Any:
    """A model without a LoRA, the same each time."""
    from raft_diffusion import assemble
    from raft_diffusion.bench.models import random_components
    from raft_diffusion.checks import POCKET
    from raft_diffusion.diffusion import DiffusionPolicy

    if config.model == POCKET:
        return assemble.make_base(config)
    return DiffusionPolicy(random_components(config), settings=assemble.user_settings(config))


def difference(mine: Sequence[Any], theirs: Sequence[Any]) -> dict[str, float]:
    """Between pictures, in levels of 0 to 255."""
    import numpy as np

    apart = np.stack(
        [np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int)) for a, b in zip(mine, theirs, strict=True)]
    )
    return {"largest_difference": float(apart.max()), "share_of_levels_that_differ": float((apart > 0).mean())}


# --- the command ------------------------------------------------------------------------------------------------------


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parts = parser.add_subparsers(dest="part", required=True)
    for name in ("authors", "pipeline"):
        add = parts.add_parser(name).add_argument
        add("--quick", action="store_true", help="a look at whether it works, no measurement")
        add("--repeats", type=int, default=None, help="how often everything is run; 5, quick 1")
        add("--out", type=Path, default=None, help="what is done; a second call goes on there")
        add("--json", type=Path, default=None)
        if name == "authors":
            add("--recipe", default="quick", help="ours; `default` is the preset itself")
            add("--rounds", type=int, default=0, help="of ours; those of the recipe")
            add("--their-rounds", type=int, default=None, help="of the authors' procedure; 10, quick 1")
            add("--equal-rounds", type=int, default=None, help="of ours at their settings; 2, quick 1")
            add("--steps", type=int, default=None, help="of a picture of theirs; 50 as published, quick 4")
            add("--pairs", type=int, default=None, help="pictures that the judge sees; 256, quick 32")
        else:
            add("--images", type=int, default=None, help="pictures a repeat; 64, quick 8")
            add("--batch", type=int, default=None, help="pictures at once; 64, quick 4")
            add("--size", type=int, default=None, help="of their sides, px")
            add("--device", default="cpu")
            add("--threads", type=int, default=None)
            add("--random-weights", action="store_true", help="Stable Diffusion 1.5's size")
    learner = parts.add_parser("learn", help="one run of ours; called by authors")
    learner.add_argument("folder", type=Path)
    learner.add_argument("--recipe", default="default")
    for name, kind in (("seed", int), ("rounds", int), ("steps", int), ("began", float)):
        learner.add_argument(f"--{name}", type=kind, default=0)
    given = parser.parse_args(arguments)
    if given.part != "learn":
        given.out = given.out or Path("runs") / ("peers-quick" if given.quick else "peers")
        full = {"repeats": 5, "their_rounds": 10, "equal_rounds": 2, "steps": 50, "pairs": 256}
        full |= {"images": 64, "batch": 64}
        quick = {"repeats": 1, "their_rounds": 1, "equal_rounds": 1, "steps": 4, "pairs": 32}
        quick |= {"images": 8, "batch": 4}
        for name, value in (quick if given.quick else full).items():
            if getattr(given, name, value) is None:
                setattr(given, name, value)
    return given


def main(arguments: list[str] | None = None) -> int:
    given = parse(arguments)
    if given.part == "learn":
        changes = [f"sampling.num_inference_steps={given.steps}"] if given.steps else []
        options = {"seed": given.seed, "rounds": given.rounds, "began": given.began, "recipe": given.recipe}
        ours(given.folder, **options, changes=changes)
        return 0
    console = Console(width=120)
    result = authors(given, console) if given.part == "authors" else pipeline(given, console)
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
