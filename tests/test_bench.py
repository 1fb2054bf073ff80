"""The bench: its arithmetic by hand, its order under a clock that is told what to say, and that the floor makes exactly
the calls that a round makes. No test looks at real time."""

import json
import math
import sys
from collections import Counter
from itertools import count

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from raft_diffusion import cli
from raft_diffusion.bench import models
from raft_diffusion.bench.bare import Bare
from raft_diffusion.bench.laps import Units, take_laps
from raft_diffusion.bench.models import make_subject
from raft_diffusion.bench.result import FLOOR, STAGES, Lap, Result, Spread, Work
from raft_diffusion.bench.setup import batches, bench_config, count_work, peak_flops, seconds_needed
from raft_diffusion.bench.watch import Stopwatch
from raft_diffusion.bench.whole import run_round
from raft_diffusion.planning.forecast import forecast
from raft_diffusion.planning.machine import Machine
from raft_diffusion.sd15 import HUB_ID

PC = Machine(cores=4, memory=16 * 10**9)
WORK = Work(
    images=8,
    sampled=[(4, 2)],
    rows=2,
    calls=3,
    decoded=[(4, 2)],
    scored=[(8, 1)],
    passes=5,
    tuned=2,
    flops=1_000,
)
LAP = Lap(
    wall=20.0,
    stages={"sample": 8.0, "score": 2.0, "select": 0.25, "tune": 7.0, "store": 1.75},
    inside={"unet": 6.0, "vae": 1.0, "tower": 1.5, "optimizer": 0.5},
    bare={"unet": 5.0, "vae": 1.25, "tower": 1.0, "backward": 6.0},
)
SMALL = ["sampling.num_inference_steps=2", "sampling.batch_size=4", "tuning.steps=2", "tuning.batch_size=3"]


# --- arithmetic -------------------------------------------------------------------------------------------------------


def test_the_ratio_and_the_rest_by_hand():
    assert LAP.floor == 13.25
    assert LAP.ratio == 20 / 13.25
    assert LAP.rest() == {
        "UNet in the sampler, more than alone": 1.0,
        "VAE in the sampler, more than alone": -0.25,
        "sampler's own work: noise, scheduler, pictures": 1.0,
        "towers in scoring, more than alone": 0.5,
        "pictures and texts made ready for the towers": 0.5,
        "optimiser": 0.5,
        "batches, noise, loss and clipping": 0.5,
        "ranking": 0.25,
        "writing the round to disk": 1.75,
        "between the stages": 1.0,
    }
    assert sum(LAP.rest().values()) == LAP.wall - LAP.floor


def test_medians_and_ends_of_the_repeats():
    assert Spread.of([3.0, 1.0, 2.0, 9.0]) == Spread(median=2.5, low=1.0, high=9.0)
    laps = [LAP, Lap(wall=26.5, stages={**LAP.stages, "sample": 16.0}, inside=LAP.inside, bare=LAP.bare), LAP]
    found = Result(work=WORK, laps=laps, peak_memory=7, peak_flops=12_000.0).to_json()
    assert found["images_per_second"] == 8 / 8
    assert found["scored_per_second"] == 8 / 2
    assert found["tuning_samples_per_second"] == 5 * 2 / 7
    assert found["floor_ratio"] == 20 / 13.25
    assert found["spread"]["floor_ratio"] == [20 / 13.25, 2.0]
    assert found["spread"]["images_per_second"] == [0.5, 1.0]
    # 8 pictures x 3 calls x 2 rows x 1,000 operations in 8 seconds, of 12,000 a second
    assert found["unet_flops_per_second"] == 6_000
    assert found["flop_utilisation"] == 0.5
    assert (found["peak_memory_bytes"], found["repeats"]) == (7, 3)
    assert found["floor"] == LAP.bare
    assert [lap["floor_ratio"] for lap in found["laps"]] == [20 / 13.25, 2.0, 20 / 13.25]
    json.dumps(found)


def test_the_profile_lists_floor_and_rest_as_shares_of_the_floor():
    result = Result(work=WORK, laps=[LAP], peak_memory=3_000_000_000, peak_flops=None)
    profile = result.profile()
    assert profile[0] == ("UNet, alone", "5", "37.7 %")
    assert [what for what, *_ in profile] == [*FLOOR.values(), *LAP.rest()]
    rows = dict(result.rows())
    assert rows["a round"] == "20 s, 13.2 s of them the floor"
    assert rows["peak memory"] == "3 GB"
    assert "of the card's peak" not in rows
    assert "flop_utilisation" not in result.to_json()


# --- what is counted --------------------------------------------------------------------------------------------------


def test_a_rounds_work_is_counted():
    config = bench_config(images=150, size=32, changes=["sampling.batch_size=64"])
    work = count_work(config, device="cpu")
    assert work.images == 150
    assert work.sampled == [(64, 2), (22, 1)]
    assert work.decoded == [(64, 2), (22, 1)]  # 2**20 pixels hold 1,024 such pictures
    assert work.scored == [(64, 2), (22, 1)]
    assert (work.rows, work.calls) == (2, 12)  # guided, DPM++ 2M in 12 steps
    assert (work.passes, work.tuned, work.tuning_samples) == (60, 8, 480)
    assert work.sampling_flops == 150 * 12 * 2 * work.flops
    large = count_work(bench_config(model=HUB_ID, changes=["sampling.batch_size=16"]), device="cuda")
    assert large.decoded == [(4, 4)]  # 512 x 512 pixels each
    assert large.rows == 2


def test_batches():
    assert batches(10, 4) == [(4, 2), (2, 1)]
    assert batches(3, 4) == [(3, 1)]
    assert batches(8, 4) == [(4, 2)]


def test_without_guidance_a_picture_is_one_row():
    config = bench_config(images=8, changes=["sampling.collect_guidance_scale=1"])
    assert count_work(config, device="cpu").rows == 1


def test_the_prediction_is_two_rounds_a_repeat_and_two_to_warm_up():
    config = bench_config(images=32)
    once = forecast(config, machine=PC)
    expected = once.seconds_start + 2 * 4 * once.seconds_per_round
    assert seconds_needed(config, repeats=3, machine=PC) == pytest.approx(expected)


def test_a_cards_peak_is_its_makers():
    assert peak_flops("cuda", "NVIDIA H200", width=2) == 990e12
    assert peak_flops("cuda", "NVIDIA H200", width=4) == 67e12
    assert peak_flops("cuda", "a card of tomorrow", width=2) is None
    assert peak_flops("cpu", "NVIDIA H200", width=4) is None


# --- the order --------------------------------------------------------------------------------------------------------


def test_rounds_and_bare_networks_take_turns_and_the_first_of_each_does_not_count():
    now, calls, told, peaks = [0.0], [], [], []
    lengths = {"round": count(10), "unet": count(1), "vae": count(2), "tower": count(3), "backward": count(4)}

    def work(name):
        calls.append(name)
        now[0] += next(lengths[name])

    def round_():
        work("round")
        return dict.fromkeys(STAGES, 1.0), {"unet": 0.5}

    laps = take_laps(
        round_,
        {name: lambda name=name: work(name) for name in FLOOR},
        repeats=3,
        clock=lambda: now[0],
        units=Units(images=6, steps=4, repeats=3, tell=lambda *at: told.append(at)),
        warm=lambda: peaks.append(list(calls)),
    )
    alone = list(FLOOR)
    warm_up, even, odd = ["round", *alone], ["round", *alone], [*alone, "round"]
    assert calls == [*warm_up, *even, *odd, *even]
    assert peaks == [["round"]]  # memory is looked at before anything bare has run
    assert [lap.wall for lap in laps] == [11, 12, 13]
    assert [lap.bare for lap in laps] == [
        {"unet": 1 + k, "vae": 2 + k, "tower": 3 + k, "backward": 4 + k} for k in (1, 2, 3)
    ]
    assert laps[0].stages == dict.fromkeys(STAGES, 1.0)
    assert told == [(10 * k, 80) for k in range(1, 9)]


def test_the_bar_follows_the_stages_within_a_round():
    told = []
    units = Units(images=6, steps=4, repeats=1, tell=lambda *at: told.append(at))
    units.stage("sample", 6, 6)
    units.stage("tune", 3, 4)
    units.half_done()
    units.half_done()
    units.stage("sample", 2, 6)
    assert told == [(6, 40), (9, 40), (10, 40), (20, 40), (22, 40)]


def test_a_stopwatch_adds_up_what_ran_under_each_name():
    ticks = iter([0.0, 1.0, 4.0, 6.0, 10.0, 11.0])
    watch = Stopwatch(lambda: next(ticks))
    with watch.running("a"), watch.running("b"):  # 0 to 6, and 1 to 4
        pass
    watch.start("b")  # 10 to 11
    watch.stop("b")
    assert watch.take() == {"a": 6.0, "b": 4.0}
    assert watch.take() == {}


# --- the floor against a real round -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def subject():
    """A small round of the carried model: ten pictures, four at once, two steps, two tuning steps."""
    config = bench_config(images=10, size=16, threads=1, device="cpu", changes=SMALL)
    policy, towers = make_subject(config, random_weights=False)
    work = count_work(config, device="cpu")
    return config, policy, towers, work, Bare(policy, towers, config, work)


class Calls:
    """Counts (network, things in the batch, whether gradients are kept) of every call while it is on."""

    def __init__(self, networks):
        self.seen, self._hooks = Counter(), []
        for name, module in networks.items():
            self._hooks.append(module.register_forward_pre_hook(self._note(name), with_kwargs=True))

    def _note(self, name):
        def note(module, args, options):
            self.seen[name, len(args[0]), torch.is_grad_enabled()] += 1

        return note

    def end(self):
        for hook in self._hooks:
            hook.remove()
        return self.seen


def test_the_floor_makes_the_calls_of_a_round_and_no_others(subject):
    config, policy, towers, _, bare = subject
    common = {"vae": policy.components.vae.decoder}
    common |= {f"tower {place}": tower.model.visual for place, tower in enumerate(towers)}
    calls = Calls({"unet": policy.components.unet, **common})
    stages, inside = run_round(policy, towers, config)
    real = calls.end()
    calls = Calls({"unet": bare._unet, **common})
    learned = Calls({"unet": bare._learner})
    for part in bare.parts.values():
        part()
    assert calls.end() + learned.end() == real
    assert real["unet", 8, False] == 2 * 2 and real["unet", 4, False] == 2  # 4 + 4 + 2 pictures, two rows each
    assert real["unet", 3, True] == 2
    assert set(stages) == set(STAGES)
    assert set(inside) == {"unet", "vae", "tower", "optimizer"}
    assert all(seconds > 0 for seconds in (*stages.values(), *inside.values()))
    assert inside["unet"] + inside["vae"] < stages["sample"]
    assert inside["tower"] < stages["score"] and inside["optimizer"] < stages["tune"]


def test_the_bare_networks_share_the_weights_and_carry_no_lora_of_the_policys(subject):
    _, policy, _, _, bare = subject
    base = {p.data_ptr() for p in policy.components.unet.parameters() if not p.requires_grad}
    assert {p.data_ptr() for p in bare._unet.parameters()} == base
    assert not any(isinstance(module, BaseTunerLayer) for module in bare._unet.modules())
    learning = {p.data_ptr() for p in bare._learner.parameters() if p.requires_grad}
    own = {p.data_ptr() for p in policy.trained.parameters().values()}
    assert len(learning) == len(own) and not learning & own
    assert {p.data_ptr() for p in bare._learner.parameters() if not p.requires_grad} == base


def test_every_round_is_the_same_work_and_leaves_no_gradient_hook_behind(subject):
    config, policy, towers, _, _ = subject
    run_round(policy, towers, config)
    once = {name: weight.clone() for name, weight in policy.trained.parameters().items()}
    run_round(policy, towers, config)
    assert all(torch.equal(weight, once[name]) for name, weight in policy.trained.parameters().items())
    unet = policy.components.unet
    assert not unet._forward_hooks and not unet._forward_pre_hooks


# --- random weights ---------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(monkeypatch):
    """Stable Diffusion 1.5 with its widths cut, and a tower of two layers."""
    real = models.sd15.config
    cut = {
        "unet": {"block_out_channels": (32, 32, 32, 32), "cross_attention_dim": 32, "layers_per_block": 1},
        "vae": {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1},
        "text_encoder": {
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "projection_dim": 32,
        },
    }
    monkeypatch.setattr(models.sd15, "config", lambda part: real(part) | cut.get(part, {}))
    tower = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    monkeypatch.setattr(models, "tower_config", lambda: tower)


@pytest.mark.slow
def test_a_round_of_random_weights_needs_none(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("it asked the network"))
    target = tmp_path / "numbers.json"
    words = ["bench", "--random-weights", "--images", "4", "--size", "64", "--repeats", "2", "--device", "cpu"]
    words += ["--threads", "1", "--json", str(target)]
    monkeypatch.setattr(sys, "argv", ["raft-diffusion", *words, *(w for s in SMALL for w in ("--set", s))])
    cli.main()
    numbers = json.loads(target.read_text(encoding="utf-8"))
    assert numbers["settings"]["model"] == "Stable Diffusion 1.5's size, random weights"
    assert (numbers["settings"]["images"], numbers["settings"]["width"], numbers["repeats"]) == (4, 64, 2)
    assert (numbers["environment"]["device"], numbers["environment"]["threads"]) == ("cpu", 1)
    wanted = ("floor_ratio", "images_per_second", "tuning_samples_per_second", "peak_memory_bytes")
    assert all(math.isfinite(numbers[name]) and numbers[name] > 0 for name in wanted)
    for name, (low, high) in numbers["spread"].items():
        assert low <= numbers[name] <= high
    lap = numbers["laps"][0]
    assert lap["floor_ratio"] == pytest.approx(lap["seconds"] / sum(lap["bare"].values()))
    assert str(tmp_path) not in target.read_text(encoding="utf-8")
    shown = capsys.readouterr().out
    assert "a round of 4 images of 64 x 64 px in 2 steps" in shown
    assert "floor ratio" in shown and "writing the round to disk" in shown


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--random-weights", "--model", "pocket"], "--random-weights is of Stable Diffusion 1.5's size"),
        (["--model", "nowhere"], "no model at 'nowhere'"),
        (["--device", "tpu"], "unknown device 'tpu'"),
        (["--size", "30"], "input should be a multiple of 8, not 30"),
        (["--set", "nothing=1"], "unknown key nothing"),
        (["--set", "rewards.weights={pickscore=1.0}"], "leave out rewards.weights.pickscore"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_loaded(words, sentence, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["raft-diffusion", "bench", *words])
    monkeypatch.setattr("raft_diffusion.bench.laps.bench", lambda *_, **__: pytest.fail("it was loaded"))
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert sentence in capsys.readouterr().err
