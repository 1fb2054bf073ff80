"""Recipes on the presets: what they come to, and that all but the paper's take the same images and steps."""

import subprocess
import sys

import pytest

from raft_diffusion import checks, recipes
from raft_diffusion.jobs import PRESETS, load_config
from raft_diffusion.modality import is_text
from raft_diffusion.planning.forecast import forecast
from raft_diffusion.planning.machine import Machine

MACHINE = Machine(cores=2, memory=25 * 10**9)
NAMES = sorted(path.stem for path in PRESETS.glob("*.toml") if not is_text(path))


def changed(config, name):
    """What the recipe makes other than it was."""
    before, after = config.flat(), recipes.apply(config, name).flat()
    assert before.keys() == after.keys()
    return {key: value for key, value in after.items() if before[key] != value}


def test_importing_leaves_torch_out():
    code = "import sys, raft_diffusion.recipes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


@pytest.mark.parametrize("preset", NAMES)
@pytest.mark.parametrize("name", recipes.RECIPES)
def test_every_recipe_goes_on_every_preset(preset, name):
    config = load_config(preset, changes=["rounds=12"])
    found = recipes.apply(config, name)
    checks.check(found)
    job = ("seed", "model", "evaluation", "prompts", "tuning.rank", "sampling.guidance_scale")
    kept = [key for key in config.flat() if key.startswith(job) and key != "prompts.per_round"]
    assert all(found.flat()[key] == config.flat()[key] for key in kept)
    assert found.tuning.learning_rate == config.tuning.learning_rate or name == "quick"
    recipe = recipes.RECIPES[name]
    assert recipe.summary and recipe.source


def test_the_default_is_the_job_itself():
    config = load_config("pocket-monet")
    assert recipes.apply(config, "default") == config


@pytest.mark.parametrize("preset", NAMES)
@pytest.mark.parametrize("name", ["one-shot", "reward-weighted"])
def test_images_and_steps_are_the_jobs(preset, name):
    config = load_config(preset, changes=["rounds=12"])
    plans = [forecast(each, machine=MACHINE) for each in (config, recipes.apply(config, name))]
    for number in ("images", "tuning_steps", "tuning_samples"):
        assert len({getattr(plan, number) for plan in plans}) == 1


def test_the_quick_round_of_one_prompt():
    config = load_config("pocket-monet")
    assert changed(config, "quick") == {
        "name": "pocket-monet-quick",
        "rounds": 1,
        "sampling.prune": "preview",
        "sampling.prune_at": [1 / 3],
        "sampling.prune_keep": [1 / 8],
        "selection.best": 1,
        "tuning.steps": 30,
        "tuning.batch_size": 4,
        "tuning.learning_rate": 1.2e-3,
        "guard.pairs": 32,
    }
    plan = forecast(recipes.apply(config, "quick"), machine=MACHINE)
    assert plan.unet_evaluations == 128 * (4 + 2) + (8 * 2 + 2) * 24  # previews; two a contest, and two that are spared


@pytest.mark.parametrize(
    "changes", [["sampling.samples_per_prompt=3"], ["sampling.sources={ policy = 1, 'folder:a' = 1 }"]]
)
def test_contests_that_cannot_be_pruned_are_whole_in_the_quick_round(changes):
    config = load_config("pocket-monet", changes=["selection.best=1", *changes])
    assert recipes.apply(config, "quick").sampling.prune is None


def test_the_papers_rounds_on_one_prompt():
    config = load_config("pocket-monet")
    assert changed(config, "paper") == {
        "name": "pocket-monet-paper",
        "sampling.collect_guidance_scale": None,
        "sampling.collect_guidance_decay": 1.0,
        "sampling.samples_per_prompt": 10,
        "sampling.groups_per_prompt": 10,
        "rewards.method": "fixed",
        "selection.best": 1,
        "selection.top_fraction": 0.8,
        "selection.replay": 0,
        "tuning.steps": 80,
        "tuning.learning_rate_decay": 1.0,
        "tuning.condition_drop": 0.0,
    }


def test_the_papers_rounds_on_ten_prompts_rank_by_what_compares_across_them():
    found = recipes.apply(load_config("pocket-resolution"), "paper")
    assert (found.sampling.groups_per_prompt, found.sampling.samples_per_prompt) == (1, 10)
    assert found.rewards.weights == {"aesthetic": 0.5}
    assert found.tuning.batch_size * found.tuning.gradient_accumulation == 8
    plan = forecast(found, machine=MACHINE)
    assert (plan.images_per_round, plan.tuning_samples) == (100, found.rounds * 80 * 8)


def test_the_papers_best_eight_of_ten():
    """Its own numbers: ten groups, ten winners, the eight with the highest raw rewards."""
    from raft_diffusion.assemble import make_draws, make_select
    from raft_diffusion.core.loop import group, score
    from raft_diffusion.core.records import Sample

    config = recipes.apply(load_config("pocket-monet"), "paper")
    samples = [Sample(draw, None) for draw in make_draws(config, 1)]
    numbers = {"text_image": [float(i % 37) for i in range(100)], "aesthetic": [0.0] * 100}
    winners = make_select(config)(group(score(samples, [lambda _: numbers]))).winners
    best = sorted((max(i % 37 for i in range(10 * g, 10 * g + 10)) for g in range(10)), reverse=True)[:8]
    assert [winner.candidate.scores["text_image"] for winner in winners] == best
    assert all(winner.weight == 1 for winner in winners)


def test_the_paper_on_prompts_without_a_reward_that_compares_takes_its_own():
    config = load_config("pocket-resolution", changes=["rewards.weights={ text_image = 2.0 }"])
    assert recipes.apply(config, "paper").rewards.weights == {"aesthetic": 1.0}


@pytest.mark.parametrize(
    ("batch", "accumulation", "expected"), [(4, 2, (4, 2)), (20, 1, (8, 1)), (3, 1, (2, 4)), (1, 1, (1, 8))]
)
def test_the_papers_batch_of_eight_fits_where_the_jobs_did(batch, accumulation, expected):
    changes = [f"tuning.batch_size={batch}", f"tuning.gradient_accumulation={accumulation}"]
    tuning = recipes.apply(load_config("pocket-monet", changes=changes), "paper").tuning
    assert (tuning.batch_size, tuning.gradient_accumulation) == expected


def test_many_prompts_are_drawn_ten_a_round_by_the_paper():
    prompts = ", ".join(f'"photo {word}"' for word in "abcdefghijklm")
    config = load_config("pocket-monet", changes=[f"prompts.train=[{prompts}]"])
    found = recipes.apply(config, "paper")
    assert (found.prompts.per_round, found.sampling.groups_per_prompt) == (10, 1)


@pytest.mark.parametrize(
    ("count", "per_round", "rounds", "groups", "expected"),
    [
        (1, None, 12, 8, (None, 96)),
        (10, None, 12, 1, (None, 12)),
        (5, 2, 5, 1, (None, 2)),  # ten groups of five prompts
        (5, 2, 3, 1, (3, 2)),  # six of them: no five share it, three do
        (3, 1, 1, 1, (1, 1)),
    ],
)
def test_one_shot_draws_all_groups_at_once(count, per_round, rounds, groups, expected):
    prompts = ", ".join(f'"{word}"' for word in "abcdefghij"[:count])
    changes = [f"prompts.train=[{prompts}]", f"rounds={rounds}", f"sampling.groups_per_prompt={groups}"]
    config = load_config("pocket-monet", changes=[*changes, f"prompts.per_round={per_round or 'none'}"])
    found = recipes.apply(config, "one-shot")
    assert (found.prompts.per_round, found.sampling.groups_per_prompt) == expected
    assert (found.rounds, found.tuning.steps) == (1, rounds * config.tuning.steps)


def test_every_candidate_wins_by_its_weight():
    found = recipes.apply(load_config("pocket-resolution", changes=["selection.diversity=0.2"]), "reward-weighted")
    assert (found.selection.tau, found.selection.best, found.selection.diversity) == (1.0, 1, 0.0)


def test_what_a_recipe_fixes_is_not_also_set_by_hand():
    with pytest.raises(ValueError, match=r"the recipe paper sets tuning.steps itself; leave out --set tuning.steps="):
        load_config("pocket-monet", recipe="paper", changes=["tuning.steps = 40"])
    with pytest.raises(ValueError, match="the recipe quick sets rounds itself"):
        load_config("pocket-monet", recipe="quick", changes=["rounds=2"])
    found = load_config("pocket-monet", recipe="one-shot", changes=["tuning.steps=40", "rounds=3", "tuning.rank=4"])
    assert (found.tuning.steps, found.rounds, found.tuning.rank) == (120, 1, 4)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "papers",
            "unknown recipe 'papers': did you mean paper\\? Known are default, quick, paper, one-shot, reward-weighted",
        ),
        ("zzz", "unknown recipe 'zzz': Known are default"),
    ],
)
def test_an_unknown_recipe_gets_the_known_ones(name, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_config("pocket-monet", recipe=name)
