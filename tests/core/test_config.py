import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from raft_diffusion.core.config import Config, Entry
from raft_diffusion.core.prompts import split
from raft_diffusion.core.records import Prompt
from raft_diffusion.core.toml import format_value

TEXT = st.text(max_size=20) | st.text(alphabet='"\\\n\r\t\x00\x08\x1f\x7f\x85\u2028#=[]{}ä🐈', max_size=20)
WORDS = TEXT.map(lambda text: f"{text}{{}}")
FLOATS = st.floats(1e-30, 1e30)


def make(**values):
    return Config.model_validate({"name": "run", "prompts": {"train": ["a cat", "a dog"]}} | values)


def toml(text=""):
    return f'name = "run"\n{text}\n[prompts]\ntrain = ["a cat", "a dog"]\n'


def problems(**values):
    """The message for mistakes that a file could hold."""
    with pytest.raises(ValueError, match=r"^run\.toml: ") as caught:
        Config._validated({"name": "run", "prompts": {"train": ["a cat"]}} | values, "run.toml")
    return str(caught.value)


def test_two_settings_are_enough_for_a_configuration():
    config = Config.parse(toml("rounds = 2"))
    assert config == make(rounds=2)
    assert (config.seed, config.sampling.width, config.tuning.learning_rate) == (0, 512, 1e-4)


def test_a_configuration_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        make().seed = 1


@settings(max_examples=150, deadline=None)
@given(
    name=st.text(alphabet=string.ascii_letters + string.digits + "._-", min_size=1),
    seed=st.integers(0, 2**63 - 1),
    train=st.lists(TEXT.map(lambda text: "t" + text), min_size=1, max_size=3, unique=True),
    held_out=st.lists(TEXT.map(lambda text: "h" + text), max_size=3, unique=True),
    template=WORDS,
    negative=TEXT,
    weights=st.dictionaries(TEXT, FLOATS | st.integers(1, 3) | st.integers(-3, -1), min_size=1, max_size=3),
    rate=st.floats(1e-30, 1),
    tau=st.none() | FLOATS,
    restart=st.booleans(),
    own=st.none() | st.builds(dict, weight=FLOATS | st.integers(1, 9), negative=st.none() | TEXT),
    vae=st.none() | TEXT.map(lambda text: "v" + text),
    stop_when_flat=st.none() | st.integers(1, 99),
    trackers=st.lists(st.sampled_from(["tensorboard", "wandb"]), max_size=2),
    clip_skip=st.integers(1, 12),
    chosen=st.fixed_dictionaries(
        {},
        optional={
            "revision": TEXT.map(lambda text: "r" + text),
            "variant": TEXT.map(lambda text: "w" + text),
            "prediction_type": st.sampled_from(["epsilon", "v_prediction"]),
            "precision": st.sampled_from(["auto", "fp32", "fp16", "bf16"]),
        },
    ),
    sources=st.dictionaries(TEXT, TEXT, max_size=2),
    tiny_decoder=st.none() | TEXT.map(lambda text: "t" + text),
    gradient_checkpointing=st.booleans(),
)
def test_toml_reads_back_as_the_same_configuration(
    name,
    seed,
    train,
    held_out,
    template,
    negative,
    weights,
    rate,
    tau,
    restart,
    own,
    vae,
    stop_when_flat,
    trackers,
    clip_skip,
    chosen,
    sources,
    tiny_decoder,
    gradient_checkpointing,
):
    if own is not None:
        train[0] = {"text": train[0], **own}
    config = make(
        name=name,
        seed=seed,
        vae=vae,
        stop_when_flat=stop_when_flat,
        trackers=trackers,
        **chosen,
        prompts={"train": train, "held_out": held_out, "template": template},
        sampling={"negative_prompt": negative, "clip_skip": clip_skip, "tiny_decoder": tiny_decoder},
        rewards={"weights": weights, "sources": sources},
        selection={"tau": tau},
        tuning={"learning_rate": rate, "restart": restart, "gradient_checkpointing": gradient_checkpointing},
    )
    assert Config.parse(config.to_toml()) == config.with_overrides([]) == config


def test_file_round_trip(tmp_path):
    config = make(prompts={"train": ['"quoted"\nline', "größe 🐈"]}, rewards={"weights": {"größe 🐈": 1.0}})
    path = tmp_path / "run.toml"
    path.write_text(config.to_toml(), encoding="utf-8")
    assert Config.load(path) == Config.load(str(path)) == config


def test_file_of_a_windows_editor(tmp_path):
    path = tmp_path / "run.toml"
    path.write_bytes(b"\xef\xbb\xbf" + toml().replace("\n", "\r\n").encode())
    assert Config.load(path) == make()


def test_settings_that_are_none_are_left_out():
    assert "tau" not in make().to_toml()
    assert "tau = 0.5" in make(selection={"tau": 0.5}).to_toml()


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"name = \n", r"run\.toml is no valid TOML: .*line 1"), (b'name = "\xe9"', r"run\.toml is not UTF-8 \(byte 8\)")],
)
def test_file_that_is_no_toml_is_refused(tmp_path, content, message):
    path = tmp_path / "run.toml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        Config.load(path)
    with pytest.raises(ValueError, match="cannot be read"):
        Config.load(path / "run.toml")


def test_missing_file_and_folder_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"there is no configuration .*none\.toml"):
        Config.load(tmp_path / "none.toml")
    with pytest.raises(ValueError, match="is a folder"):
        Config.load(tmp_path)


def test_all_problems_are_told_at_once():
    message = problems(
        seeds=1,
        rounds=0,
        sampling={"width": 65, "guidence_scale": 3},
        trackers="wandb",
        tuning={"targets": ["attention", "everything"], "learning_rate": float("nan"), "rank": "8"},
    )
    for part in (
        "unknown key seeds, did you mean seed",
        "rounds: input should be greater than or equal to 1, not 0",
        "sampling.width: input should be a multiple of 8, not 65",
        "unknown key sampling.guidence_scale, did you mean guidance_scale",
        "tuning.targets.1: input should be 'attention', 'feed_forward', 'projection' or",
        "'convolution', not 'everything'",
        "tuning.rank: input should be a valid integer, not '8'",
        'trackers: input should be a list such as ["a", "b"], not \'wandb\'',
        "tuning.learning_rate: input should be a finite number, not nan",
    ):
        assert part in message
    assert message.count("; ") == 7


def test_misfits_are_told_beside_wrong_fields():
    """A section that is wrong by itself is held against no other."""
    values = {"rewards": {"weights": {"x": 0.0}}, "selection": {"best": 9}, "prompts": {"train": ["a"], "per_round": 2}}
    message = problems(rounds=0, **values)
    assert message.startswith("run.toml: rounds: ") and message.count("; ") == 5
    for part in ("rewards.weights are all 0", "selection.best is 9", "prompts.per_round is 2"):
        assert part in message
    message = problems(sampling={"width": 65}, **values)
    assert "sampling.width" in message and "selection.best" not in message and "prompts.per_round" in message


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rounds": True}, "rounds: input should be a valid integer, not true"),
        ({"rounds": 2.0}, "rounds: input should be a valid integer, not 2.0"),
        ({"rounds": 10**30}, "rounds: input should be less than or equal to 10000"),
        ({"name": 3}, "name: input should be a text in quotes, not 3"),
        ({"tuning": {"alpha": True}}, "tuning.alpha: input should be a valid number, not true"),
        ({"tuning": {"alpha": "8"}}, "tuning.alpha: input should be a valid number, not '8'"),
        ({"tuning": {"restart": 1}}, "tuning.restart: input should be a valid boolean, not 1"),
        ({"tuning": 3}, "tuning: input should be a section of settings, not 3"),
        ({"trackers": ["mlflow"]}, "trackers.0: input should be 'tensorboard' or 'wandb', not 'mlflow'"),
        ({"stop_when_flat": 0}, "stop_when_flat: input should be greater than or equal to 1, not 0"),
        ({"vae": ""}, "vae: string should have at least 1 character, not ''"),
        ({"revision": ""}, "revision: string should have at least 1 character, not ''"),
        ({"variant": ""}, "variant: string should have at least 1 character, not ''"),
        ({"prediction_type": "v"}, "prediction_type: input should be 'epsilon' or 'v_prediction', not 'v'"),
        ({"precision": "fp8"}, "precision: input should be 'auto', 'fp32', 'fp16' or 'bf16', not 'fp8'"),
        ({"tuning": {"gradient_checkpointing": 1}}, "tuning.gradient_checkpointing: input should be a valid boolean"),
        ({"rewards": {"sources": {"hpsv2": 1}}}, "rewards.sources.hpsv2: input should be a text in quotes, not 1"),
        ({"sampling": {"clip_skip": 0}}, "sampling.clip_skip: input should be greater than or equal to 1, not 0"),
        ({"sampling": {"clip_skip": 13}}, "sampling.clip_skip: input should be less than or equal to 12, not 13"),
    ],
)
def test_types_and_ranges_are_strict(values, message):
    assert message in problems(**values)


def test_an_integer_is_a_number():
    alpha = Config.parse('name = "run"\nprompts.train = ["a"]\ntuning.alpha = 16').tuning.alpha
    assert (alpha, type(alpha)) == (16.0, float)


def test_prompts_with_settings_of_their_own():
    config = make(
        prompts={
            "train": ["cat", {"text": "dog"}, {"text": "owl", "weight": 2}, {"text": "fox", "negative": ""}],
            "held_out": [{"text": "bee", "weight": 3, "negative": "flat"}, "ant"],
            "template": "photo {}, {}",
        },
        sampling={"negative_prompt": "blurry"},
    )
    assert config.prompts.train[:2] == ["cat", "dog"]  # a table that says no more than its text is the text
    assert config.prompts.train[2] == Entry(text="owl", weight=2.0)
    assert 'train = ["cat", "dog", { "text" = "owl", "weight" = 2.0 }, ' in config.to_toml()
    assert config.train_prompts() == [
        Prompt("photo cat, cat", negative="blurry"),
        Prompt("photo dog, dog", negative="blurry"),
        Prompt("photo owl, owl", negative="blurry", weight=2.0),
        Prompt("photo fox, fox"),
    ]
    assert config.held_out_prompts() == [
        Prompt("photo bee, bee", negative="flat", weight=3.0),
        Prompt("photo ant, ant", negative="blurry"),
    ]
    assert Config.parse(config.to_toml()) == config


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ([3], "prompts.train.0: input should be a text in quotes, not 3"),
        ([None], "prompts.train.0: input should be a text in quotes, not none"),
        (["a", {"txt": "b"}], "prompts.train.1.text is missing; unknown key prompts.train.1.txt, did you mean text"),
        ([{"text": "a", "weight": 0}], "prompts.train.0.weight: input should be greater than 0, not 0"),
        ([{"text": "a", "weight": "2"}], "prompts.train.0.weight: input should be a valid number, not '2'"),
        (["b", {"text": "b", "weight": 2}], "prompts: train holds 'b' more than once"),
    ],
)
def test_prompts_that_mean_nothing_are_refused(train, message):
    assert message in problems(prompts={"train": train})


def test_other_prompts_take_the_place_of_the_trained_ones():
    config = make(prompts={"train": ["a"], "held_out": ["b"], "template": "x {}"}, sampling={"negative_prompt": "n"})
    given = [Prompt("c", weight=2.0), Prompt("b"), Prompt("d", negative="m")]
    changed = config.with_prompts(given)
    assert changed.train_prompts() == [Prompt("x c", negative="n", weight=2.0), Prompt("x d", negative="m")]
    assert changed.held_out_prompts() == config.held_out_prompts()
    assert changed.model_copy(update={"prompts": config.prompts}) == config


def test_a_share_of_other_prompts_is_held_out_by_the_stable_split():
    given = [Prompt(f"prompt {i}", weight=1.5) for i in range(60)]
    config = make(seed=3, prompts={"train": ["a"], "held_out": ["prompt 1"]})
    train, held_out = split(given, 0.25, seed=3)
    changed = config.with_prompts(given, 0.25)
    assert (changed.train_prompts(), changed.held_out_prompts()) == (train, held_out)
    assert held_out and changed.with_prompts(given[::-1], 0.25).held_out_prompts() == held_out[::-1]
    assert config.with_prompts(given, 0.0).prompts.held_out == []


def test_other_prompts_that_leave_nothing_or_do_not_fit_are_refused():
    config = make(prompts={"train": ["a", "b"], "held_out": ["c", "d"], "per_round": 2})
    with pytest.raises(ValueError, match=r"hold only what is held out \('c', 'd'\), .*; give other prompts, or take"):
        config.with_prompts([Prompt("c"), Prompt("d")])
    with pytest.raises(ValueError, match=r"^the prompts: prompts\.per_round is 2, more than the 1 prompts; lower it$"):
        config.with_prompts([Prompt("c"), Prompt("e")])
    with pytest.raises(ValueError, match="train holds 'e' more than once"):
        config.with_prompts([Prompt("e"), Prompt("e", weight=2.0)])
    with pytest.raises(ValueError, match=r"prompts\.train: list should have at least 1 item"):
        config.with_prompts([])
    with pytest.raises(ValueError, match=r"at least 0 and below 1, not 1.5"):
        config.with_prompts([Prompt("e")], 1.5)


def test_missing_settings_are_named():
    with pytest.raises(ValueError, match=r"^the configuration: name is missing; prompts is missing"):
        Config.parse("")
    with pytest.raises(ValueError, match=r"prompts\.train is missing"):
        Config.parse('name = "run"\n[prompts]')


def test_key_like_no_other_lists_the_known_ones():
    known = "best or top_fraction or top_count or tau or min_spread or diversity or replay or replay_decay"
    assert f"unknown key selection.qqq, did you mean {known}?" in problems(selection={"qqq": 1})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "a/b"}, "name: "),
        ({"sampling": 3}, "sampling: "),
        ({"rewards": {"weights": {}}}, "rewards.weights: "),
        ({"prompts": {"train": []}}, "prompts.train: "),
        ({"prompts": {"train": ["b", "a"], "held_out": ["a", "b"]}}, "prompts: 'a', 'b' is both trained and held out"),
        ({"prompts": {"train": ["b", "a", "b"]}}, "prompts: train holds 'b' more than once"),
        ({"prompts": {"train": ["a"], "held_out": ["c", "c"]}}, "prompts: held_out holds 'c' more than once"),
        (
            {"selection": {"best": 2, "tau": 1.0}},
            "selection.tau lets every candidate win by weight, so selection.best = 2 says nothing: leave one of",
        ),
        ({"rewards": {"weights": {"x": 0.0, "y": 0}}}, "rewards.weights are all 0"),
        ({"prompts": {"train": ["a"], "template": "a photo"}}, "prompts: template 'a photo' needs {} where"),
        ({"prompts": {"train": ["a"], "per_round": 2}}, "prompts.per_round is 2, more than the 1 prompts"),
        ({"selection": {"best": 9}}, "selection.best is 9, more than sampling.samples_per_prompt (8)"),
        (
            {"selection": {"top_fraction": 0.5}},
            'selection.top_fraction compares prompts with each other: set rewards.method to "fixed"',
        ),
        (
            {"selection": {"top_count": 2, "tau": 1.0}, "rewards": {"method": "fixed"}},
            "selection: choose one of top_fraction, top_count and tau",
        ),
        (
            {"selection": {"top_count": 2, "top_fraction": 0.5}, "rewards": {"method": "fixed"}},
            "selection: choose one of top_fraction, top_count and tau",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(values, message):
    assert message in problems(**values)


def test_all_misfits_between_sections_are_told_at_once():
    message = problems(selection={"best": 9, "top_count": 3}, prompts={"train": ["a"], "per_round": 2})
    assert all(key in message for key in ("selection.best", "selection.top_count", "prompts.per_round"))


def test_overrides():
    config = make(selection={"tau": 0.5}).with_overrides(
        [
            "rounds=2",
            "tuning.learning_rate = 3e-4",
            "model=runwayml/stable diffusion",
            "prompts.train=['x', 'y=z']",
            "rewards.weights.aesthetic=0.5",
            "sampling.negative_prompt=",
            "selection.tau=none",
            'device="cpu"',
        ]
    )
    assert (config.rounds, config.tuning.learning_rate, config.model) == (2, 3e-4, "runwayml/stable diffusion")
    assert config.prompts.train == ["x", "y=z"]
    assert config.rewards.weights == {"text_image": 1.0, "aesthetic": 0.5}
    assert (config.sampling.negative_prompt, config.selection.tau, config.device) == ("", None, "cpu")
    assert make().with_overrides([]) == make()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("rounds", "--set rounds: write KEY=VALUE"),
        ("=3", "--set =3: write KEY=VALUE"),
        ("seed.x=1", "'seed' is a setting, not a section"),
        ("tuning.rnk=8", "--set: unknown key tuning.rnk, did you mean rank"),
        ("tunning.rank=8", "--set: unknown key tunning, did you mean tuning"),
        ("rounds=many", "rounds: .*, not 'many'"),
        ("rounds=none", "rounds: .*, not none"),
        ("prompts.train.0=x", "'train' is a setting, not a section"),
        (
            "prompts.train=['a', 'caf\udce9']",
            r"^--set: prompts\.train holds characters that are no UTF-8; type them again$",
        ),
        ("name=2024", "name: input should be a text in quotes, not 2024"),
        ("rewards.weights.text_image=none", r"rewards\.weights: dictionary should have at least 1 item"),
        ("a\nb=1", r"unknown key a\\nb"),
        ("a\nb", r"--set a\\nb: write KEY=VALUE"),
    ],
)
def test_overrides_that_mean_nothing_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        make().with_overrides([change])


def test_a_weight_that_is_none_leaves_the_ranking():
    config = make(rewards={"weights": {"text_image": 1.0, "x": 2.0}})
    assert config.with_overrides(["rewards.weights.x=none"]).rewards.weights == {"text_image": 1.0}
    assert config.with_overrides(["rewards.weights.y=none"]) == config
    changed = config.with_overrides(["rewards.weights.text_image=none", "rewards.weights.y=1"])
    assert changed.rewards.weights == {"x": 2.0, "y": 1.0}


def test_a_source_is_set_and_taken_out_as_a_weight_is():
    config = make().with_overrides(["rewards.sources.pickscore=heads/p.safetensors", "rewards.sources.b='x'"])
    assert config.rewards.sources == config.flat()["rewards.sources"] == {"pickscore": "heads/p.safetensors", "b": "x"}
    assert config.with_overrides(["rewards.sources.b=none"]).rewards.sources == {"pickscore": "heads/p.safetensors"}
    assert make().with_overrides(["rewards.sources.b=none"]) == make()


KEYS = [
    *sorted(make().flat()),
    "rewards.weights.text_image",
    "rewards.weights.x",
    "rewards.sources.x",
    "prompts",
    "sampling",
    "a.b",
    "",
]
TYPED = (
    TEXT
    | st.text(alphabet=st.characters(codec=None), max_size=5)
    | st.sampled_from(["none", "true", "[]", "{}", "nan", "1e400", "0x" + "f" * 5000, "[" * 5000, "[" * 90 + "]" * 90])
    | st.integers().map(str)
    | st.floats().map(str)
    | st.lists(st.integers() | TEXT, max_size=3).map(format_value)
    | st.dictionaries(TEXT, TEXT | st.integers() | st.booleans(), max_size=2).map(format_value)
)


@settings(max_examples=300, deadline=None)
@given(key=st.sampled_from(KEYS) | TEXT, value=TYPED)
def test_any_change_gives_a_configuration_or_one_line(key, value):
    try:
        config = make().with_overrides([f"{key}={value}"])
    except ValueError as caught:
        error = caught
    else:
        assert Config.parse(config.to_toml()) == config
        return
    assert type(error) is ValueError
    assert str(error).isprintable()


def test_flat_names_every_setting_by_its_dotted_key():
    flat = make(rewards={"weights": {"a.b": 1.0}}).flat()
    assert (flat["name"], flat["tuning.rank"], flat["selection.tau"]) == ("run", 8, None)
    assert flat["rewards.weights"] == {"a.b": 1.0}
    assert not {"tuning", "rewards"} & set(flat)


def test_every_number_says_its_meaning():
    sections = [Config, Entry, *(field.annotation for field in Config.model_fields.values())]
    for section in sections:
        for name, field in getattr(section, "model_fields", {}).items():
            assert field.description or hasattr(field.annotation, "model_fields"), name


def test_a_rewards_name_may_hold_a_dot():
    config = make().with_overrides(["rewards.weights.hpsv2.1=2", "rewards.sources.hpsv2.1=hps.pt"])
    assert config.rewards.weights == {"text_image": 1.0, "hpsv2.1": 2.0}
    assert config.rewards.sources == {"hpsv2.1": "hps.pt"}
    assert Config.parse(config.to_toml()) == config
    assert "hpsv2.1" not in config.with_overrides(["rewards.weights.hpsv2.1=none"]).rewards.weights


@pytest.mark.parametrize(
    ("sampling", "rounds", "expected"),
    [
        ({"guidance_scale": 7.5}, 3, [7.5, 7.5, 7.5]),
        ({"guidance_scale": 7.5, "collect_guidance_scale": 4.0}, 2, [4.0, 4.0]),
        ({"guidance_scale": 9.0, "collect_guidance_decay": 0.5}, 4, [9.0, 5.0, 3.0, 2.0]),
        ({"collect_guidance_scale": 3.0, "collect_guidance_decay": 0.0}, 3, [3.0, 1.0, 1.0]),
        ({"collect_guidance_scale": 0.0, "collect_guidance_decay": 0.0}, 2, [0.0, 0.0]),  # no guidance to lose
    ],
)
def test_guidance_of_the_candidates_fades(sampling, rounds, expected):
    config = make(rounds=rounds, sampling=sampling)
    assert [config.collect_guidance(index) for index in range(1, rounds + 1)] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("sampling", "collect_guidance_decay", 1.1),
        ("sampling", "eta", 1.1),
        ("sampling", "noise_scale", 0.0),
        ("sampling", "lora_scale", 0.0),
        ("selection", "replay_decay", 0.0),
        ("selection", "replay_decay", 1.01),
        ("selection", "min_spread", -0.1),
        ("selection", "diversity", -0.1),
        ("tuning", "anti_drift", -0.1),
    ],
)
def test_a_lever_out_of_its_range_is_named(section, key, value):
    assert f"{section}.{key}: " in problems(**{section: {key: value}})


def test_levers_that_exclude_each_other_are_named():
    assert "selection.tau lets every candidate win, and selection.diversity" in problems(
        selection={"tau": 1.0, "diversity": 0.5}
    )
    assert "selection.min_spread leaves out prompts, which selection.top_count does by its own rule" in problems(
        selection={"min_spread": 0.5, "top_count": 3}, rewards={"method": "fixed"}
    )


def test_a_configuration_of_before_the_levers_changes_nothing():
    sampling, selection, tuning = make().sampling, make().selection, make().tuning
    assert (sampling.collect_guidance_decay, sampling.eta, sampling.noise_scale, sampling.lora_scale) == (1, 0, 1, 1)
    assert (selection.min_spread, selection.diversity, selection.replay_decay, tuning.anti_drift) == (0, 0, 1, 0)
