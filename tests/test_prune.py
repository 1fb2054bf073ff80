"""Pruning of candidates on the way: the survivors are the pictures that they would have been, and cost what is said."""

import json
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import torch

from raft_diffusion import assemble
from raft_diffusion.bench.setup import bench_config
from raft_diffusion.checks import check
from raft_diffusion.core.halving import lot
from raft_diffusion.core.unfinished import Shelf
from raft_diffusion.diffusion import PictureCodec
from raft_diffusion.jobs import load_config
from raft_diffusion.planning.forecast import forecast, this_machine
from raft_diffusion.planning.nfe import evaluations
from raft_diffusion.prune import PrunePolicy, early_reward, why_off
from raft_diffusion.runs import Run

SMALL = (
    *("threads=1", "sampling.num_inference_steps=4", "sampling.width=16", "sampling.height=16", "tuning.rank=2"),
    *("sampling.samples_per_prompt=6", "sampling.groups_per_prompt=3", "sampling.batch_size=6", "selection.best=1"),
    *("tuning.steps=1", "tuning.batch_size=2", "guard.enabled=false", "rewards.held_out=none"),
)
PLAN = 3 * (6 * 1 + 3 * 1 + 2 * 2) + 1 * 1 + 1 * 2
"""Candidates x calls of three contests: stops after 1 and 2 of 4, with 3 and 2 left, and one is spared in the first."""


def configure(*changes):
    keep = "sampling.prune_keep=[0.5, 0.33]"
    return load_config("pocket-monet", changes=[*SMALL, "sampling.prune=predicted_x0", keep, *changes])


@pytest.fixture(scope="module")
def policy():
    return assemble.make_policy(configure())


class Judge:
    """Ranks by the seed's last digits, so that it is known who survives; remembers what it was asked."""

    def __init__(self):
        self.asked: list[list[str]] = []

    def __call__(self, parts, settings):
        self.asked.append([part.draws[0].id for part in parts])
        return {part.draws[0].id: float(part.draws[0].seed % 1009) for part in parts}


def pruned(policy, judge, **changes):
    options = {"at": [0.25, 0.5], "keep": [0.5, 1 / 3], "judge": judge, "guided": False, "why_off": lambda: None}
    return PrunePolicy(policy, **(options | changes))


def watched(policy, work):
    """(what work gives, rows of each call of the UNet)"""
    rows: list[int] = []
    hook = policy.components.unet.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    try:
        return work(), rows
    finally:
        hook.remove()


@pytest.fixture
def draws(policy):
    config = configure()
    policy.settings = assemble.collecting(config)
    return assemble.make_draws(config, 1)


def contests_of(draws):
    return [[draw for draw in draws if draw.group == group] for group in range(3)]


def test_the_survivors_are_the_pictures_that_they_would_have_been(policy, draws):
    whole = {sample.id: sample for sample in policy.generate(draws)}
    samples, rows = watched(policy, lambda: pruned(policy, Judge()).generate(draws))
    expected = []
    for number, contest in enumerate(contests_of(draws)):
        ranked = sorted(contest, key=lambda draw: -(draw.seed % 1009))
        spared = [lot(contest, {draw.id for draw in ranked[:3]})] if number == 0 else []
        expected += [draw for draw in contest if draw in ranked[:2] or draw.id in spared]
    assert [sample.draw for sample in samples] == expected and len(samples) == 7
    assert [sample.data.spared for sample in samples].count(True) == 1
    for sample in samples:
        torch.testing.assert_close(sample.data.latent, whole[sample.id].data.latent, atol=1e-4, rtol=1e-4)
        assert sample.data.early == (float(sample.draw.seed % 1009),) * 2
        words = whole[sample.id].data.image.info["parameters"]
        assert sample.data.image.info["parameters"] == words
    assert sum(rows) == PLAN * 2  # guided


def by_seed(samples):
    return {sample.id: float(sample.draw.seed % 1009) for sample in samples}


def test_previews_choose_and_the_survivors_are_the_pictures_that_they_would_have_been(policy, draws):
    whole = {sample.id: sample for sample in policy.generate(draws)}
    seen = []

    def rank(samples):
        seen.extend(sample.data.image.info["parameters"] for sample in samples)
        return by_seed(samples)

    previewed = pruned(policy, Judge(), preview=rank, at=[0.75], keep=[1 / 3])
    samples, rows = watched(policy, lambda: previewed.generate(draws))
    expected = {draw for contest in contests_of(draws) for draw in sorted(contest, key=lambda d: -(d.seed % 1009))[:2]}
    assert {sample.draw for sample in samples if not sample.data.spared} == expected and len(samples) == 7
    for sample in samples:
        torch.testing.assert_close(sample.data.latent, whole[sample.id].data.latent, atol=1e-4, rtol=1e-4)
        assert sample.data.early == (float(sample.draw.seed % 1009),)
    assert len(seen) == 18 and all("Steps: 3," in words for words in seen)
    assert sum(rows) == 18 * (1 + 2 + 1) + 7 * 8  # of three calls the middle one is guided


def test_survivors_of_several_contests_fill_a_batch(policy, draws):
    """The three contests of 6 leave 4, 3 and 3, then 3, 2 and 2: two batches of 6 at most."""
    _, rows = watched(policy, lambda: pruned(policy, Judge()).generate(draws))
    assert [number // 2 for number in rows] == [6, 6, 6, 6, 4, 6, 6, 1, 1]


def test_the_early_scores_are_a_reward_that_does_not_rank(policy, draws):
    samples = pruned(policy, Judge()).generate(draws)
    found = early_reward([0.25, 0.5])(samples)
    by_lot = found.pop("spared")
    assert found == {name: [float(s.draw.seed % 1009) for s in samples] for name in ("early_25", "early_50")}
    assert by_lot == [float(sample.data.spared) for sample in samples] and sum(by_lot) == 1
    assert early_reward([0.25, 0.5])(policy.generate(draws[:2])) == {}


class Stopped(Exception):
    pass


def test_previews_are_not_made_again_once_they_have_decided(policy, draws, tmp_path):
    def never(samples):
        raise AssertionError

    expected = pruned(policy, Judge(), preview=by_seed).generate(draws)
    policy.shelf = Shelf(tmp_path / "shelf", packer=PictureCodec(), identity="settings")
    batches = iter(range(7))
    try:
        with pytest.raises(StopIteration):  # after the previews' batches and some of the pictures'
            pruned(policy, Judge(), preview=by_seed, progress=lambda *_: next(batches)).generate(draws)
        again = pruned(policy, Judge(), preview=never).generate(draws)
    finally:
        policy.shelf = None
    assert [sample.draw for sample in again] == [sample.draw for sample in expected]
    for one, two in zip(again, expected, strict=True):
        assert torch.equal(one.data.latent, two.data.latent) and one.data.spared == two.data.spared


@pytest.mark.parametrize("batches", range(1, 14))
def test_a_stop_anywhere_changes_nothing_and_what_was_decided_stays(policy, draws, tmp_path, batches):
    """Stopped after so many batches and begun again: the same bytes, by the first ranking even if the judge has changed
    its mind."""
    expected = pruned(policy, Judge()).generate(draws)
    done = 0

    def stop(*_):
        nonlocal done
        done += 1
        if done == batches:
            raise Stopped

    policy.shelf = Shelf(tmp_path / "shelf", packer=PictureCodec(), identity="settings")
    try:
        first, second = Judge(), Judge()
        with suppress(Stopped):
            pruned(policy, first, progress=stop).generate(draws)
        decided = {name for row in first.asked[1::2] for name in row}

        def other(parts, settings):
            told = second(parts, settings)
            assert not decided & set(told)
            return told

        again = pruned(policy, other).generate(draws)
        _, rows = watched(policy, lambda: pruned(policy, other).generate(draws))
    finally:
        policy.shelf = None
    assert rows == []  # everything is kept
    assert [sample.draw for sample in again] == [sample.draw for sample in expected]
    for one, two in zip(again, expected, strict=True):
        assert torch.equal(one.data.latent, two.data.latent) and one.data.early == two.data.early
        assert np.array_equal(np.array(one.data.image), np.array(two.data.image))


def test_where_it_has_ended_contests_are_whole_and_it_says_so_once(policy, draws):
    judge = Judge()
    ended = pruned(policy, judge, why_off=lambda: "pruning is off")
    with pytest.warns(UserWarning, match="pruning is off"):
        samples = ended.generate(draws)
    ended.generate(draws[:6])  # a second warning would be an error
    assert judge.asked == []
    assert [sample.draw for sample in samples] == draws and not any(sample.data.early for sample in samples)


def test_a_judge_that_needs_guidance_leaves_rounds_without_any_whole(policy, draws):
    plain = replace(policy.settings, guidance_scale=1.0)
    assert len(pruned(policy, Judge(), guided=True).generate(draws, plain)) == len(draws)
    assert len(pruned(policy, Judge(), guided=False).generate(draws, plain)) == 7


@pytest.mark.parametrize(
    ("correlations", "expected"),
    [([0.5], None), ([0.1], "0.10, less than sampling.prune_min_correlation = 0.3"), ([0.1, 0.6], None), ([], None)],
)
def test_whether_it_goes_on_follows_from_the_stored_rounds(tmp_path, correlations, expected):
    lines = []
    for index, rho in enumerate(correlations, start=1):
        (tmp_path / "rounds" / f"{index:03d}").mkdir(parents=True)
        row = {"round": index, "mean": {"a": 1.0}, "figures": {"rank_correlation_50": rho}}
        (tmp_path / "rounds" / f"{index:03d}" / "round.json").write_text(json.dumps(row))
        lines.append(json.dumps(row) + "\n")
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    found = why_off(tmp_path, at=0.5, least=0.3)
    assert found is None if expected is None else expected in str(found)


PREVIEWED = 3 * 6 * 2 * 2 + 3 * (3 * 1 + 2 * 3) * 2 + (1 + 3) * 2
"""Rows of the UNet: guided previews of 2 calls, then one call of 4 with 3 left and three with 2, and one is spared."""


@pytest.mark.parametrize(
    ("score", "rows"), [("predicted_x0", 2 * PLAN), ("guidance", 2 * PLAN), ("preview", PREVIEWED)]
)
def test_a_run_prunes_records_it_and_costs_what_the_plan_says(tmp_path, score, rows):
    at = ["sampling.prune_at=[0.5, 0.25]"] if score == "preview" else []
    config = configure(f"sampling.prune={score}", "rounds=1", *at)
    run = Run(config, tmp_path / "run")
    base = run._policy.components.unet
    sampled: list[int] = []
    hook = base.register_forward_pre_hook(
        lambda _, given: None if torch.is_grad_enabled() else sampled.append(len(given[0]))
    )
    (round_,) = run.rounds()
    hook.remove()
    assert [len(group.candidates) for group in round_.groups] == [3, 2, 2]
    assert sum(sampled) == evaluations(config, 1).sampling == rows
    (row,) = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert row["candidates"] == 7 and row["figures"]["pruned"] == 11 / 18
    assert -1 <= row["figures"]["rank_correlation_50"] <= 1 and row["figures"]["spared_wins"] in (0, 1)
    lines = (tmp_path / "run" / "rounds" / "001" / "candidates" / "metadata.jsonl").read_text().splitlines()
    assert len(lines) == 7 and {"early_25", "early_50", "spared"} < set(json.loads(lines[0])["scores"])


def test_a_run_ends_pruning_by_itself_and_a_resumed_one_does_too(tmp_path):
    """No ranking agrees by more than 1, so round 2 is whole, whether or not the run was stopped before."""
    changes = ["sampling.prune_min_correlation=1"]
    with pytest.warns(UserWarning, match="pruning is off for the rest of this run"):
        whole = list(Run(configure("rounds=2", *changes), tmp_path / "one").rounds())
    assert [sum(len(group.candidates) for group in round_.groups) for round_ in whole] == [7, 18]
    assert whole[1].figures["pruned"] == 0
    list(Run(configure("rounds=1", *changes), tmp_path / "two").rounds())
    with pytest.warns(UserWarning, match="pruning is off for the rest of this run"):
        list(Run(configure("rounds=2", *changes), tmp_path / "two").rounds())
    for name in ("rounds/002/candidates/metadata.jsonl", "rounds/002/round.json", "metrics.jsonl"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_the_base_and_the_tuned_model_are_both_pruned(policy):
    config = configure("sampling.base_share=0.34")
    rewards = [*assemble.make_rewards(config), early_reward(config.sampling.stops[0])]
    sampler = assemble.make_sampler(config, policy, rewards=rewards)
    samples, rows = watched(policy, lambda: sampler.generate(assemble.round_draws(config, policy, 1)))
    counts = [[sample.draw.group for sample in samples].count(group) for group in range(3)]
    assert sorted(counts) == [2, 3, 3]  # one is spared of the base's and one of the tuned model's
    assert sum(rows) == evaluations(config, 1).sampling


def test_the_plan_counts_what_pruning_saves():
    whole, less = (
        forecast(load_config("pocket-monet", changes=["threads=1", *more]), machine=this_machine())
        for more in ([], ["sampling.prune=predicted_x0"])
    )
    assert less.unet_evaluations == 4 * 2 * (8 * (16 * 3 + 8 * 3 + 4 * 6) + 2 * (3 + 6))
    assert less.seconds_per_round < whole.seconds_per_round
    assert less.evaluation_unet_evaluations == whole.evaluation_unet_evaluations
    assert any("pruning takes 51% of the UNet evaluations" in note for note in less.notes)
    interval = load_config("pocket-monet", changes=["threads=1", "sampling.guidance_interval=[0.25, 0.75]"])
    counted = forecast(interval, machine=this_machine())
    assert counted.unet_evaluations == 4 * 128 * (12 + 6) == evaluations(interval, 4).sampling
    assert counted.evaluation_unet_evaluations == 352 * (12 + 6)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["sampling.prune_at=[0.5]"], "prune_at has 1 shares and prune_keep 2"),
        (["sampling.prune_at=[0.5, 0.25]"], "must rise, above 0 and below 1"),
        (["sampling.prune=preview", "sampling.prune_at=[1, 0.25]"], "must rise, above 0 and below 1"),
        (["sampling.prune_at=[0, 0.25]"], "must rise, above 0 and below 1"),
        (["sampling.prune_keep=[0.9, 0.5]"], r"keeps \[5, 3\] of 6 candidates, .* must leave some out"),
        (["selection.best=3"], "selection.best is 3, more than the 2 that sampling.prune_keep ranks to the end"),
        (["sampling.sources={ policy = 1, 'a:b' = 1 }"], "let the policy make all candidates"),
        (["sampling.prune=guidance", "sampling.collect_guidance_scale=1"], "needs candidates that are guided"),
        (["sampling.prune=taste"], "sampling.prune: input should be"),
        (["sampling.guidance_interval=[0.5, 0.5]"], "guidance_interval is 0.5 to 0.5; the first share must be below"),
    ],
)
def test_settings_that_cannot_prune_are_refused(changes, told):
    with pytest.raises(ValueError, match=told):
        configure(*changes)


@pytest.mark.parametrize("change", ["sampling.prune=predicted_x0", "sampling.guidance_interval=[0, 0.5]"])
def test_the_bench_refuses_rounds_that_its_floor_does_not_have(change):
    with pytest.raises(ValueError, match=r"leave out sampling\.prune and sampling\.guidance_interval"):
        bench_config(images=32, changes=[change])


def test_what_a_person_ranks_and_what_only_the_model_likes_is_not_pruned():
    with pytest.raises(ValueError, match=r"take out .*sampling\.prune"):
        check(configure("rewards.weights={ human = 1.0 }"))
    with pytest.raises(ValueError, match="log_ratio"):
        check(configure("rewards.weights={ log_ratio = -1.0 }"))
