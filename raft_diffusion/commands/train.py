"""`raft-diffusion train`: run RAFT."""

from __future__ import annotations

from .options import (
    ConfigName,
    Device,
    Generators,
    HeldOut,
    Json,
    Lora,
    Model,
    Out,
    Prediction,
    Prompts,
    RankBy,
    Recipe,
    Revision,
    Seed,
    Set,
    Threads,
    Variant,
    collected,
    make_console,
)


def train(
    config: ConfigName,
    model: Model = None,
    revision: Revision = None,
    variant: Variant = None,
    prediction_type: Prediction = None,
    lora: Lora = None,
    prompts: Prompts = None,
    held_out: HeldOut = None,
    reward: RankBy = None,
    generators: Generators = None,
    recipe: Recipe = None,
    out: Out = None,
    seed: Seed = None,
    device: Device = None,
    threads: Threads = None,
    changes: Set = None,
    json_file: Json = None,
) -> None:
    """Run RAFT; the same command starts a run, goes on with it, and shows the result of a finished one.

    Rounds, batch sizes, threads, device, trackers and the evaluation may change; other settings need another folder.

    Example: raft-diffusion train pocket-monet --out runs/small --set tuning.rank=8

    Example: raft-diffusion train pocket-monet --prompts "monet style dog" --out runs/dog

    Example: raft-diffusion train pocket-monet --lora runs/small --out runs/further

    Example: raft-diffusion train pocket-monet --prompts styles --held-out 0.2 --set stop_when_flat=3

    Example: raft-diffusion train pocket-monet --recipe one-shot

    Example: raft-diffusion train pocket-monet --reward human --out runs/my-eye

    Example: raft-diffusion train pocket-monet --generator policy --generator folder:pictures
    """
    from .. import crew, jobs, training

    resolved = jobs.load_config(
        config,
        model=model,
        revision=revision,
        variant=variant,
        prediction_type=prediction_type,
        lora=str(lora) if lora else None,
        prompts=prompts,
        held_out=held_out,
        reward=reward,
        generators=generators or [],
        recipe=recipe,
        seed=seed,
        device=device,
        threads=threads,
        changes=changes or [],
    )
    if crew.is_helper():
        return training.help_with(resolved)
    with collected(json_file) as numbers:
        numbers.update(training.finish_run(resolved, out or jobs.default_folder(resolved), make_console(json_file)))
