import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from raft_diffusion.core.config import Config

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
)
def test_toml_reads_back_as_the_same_configuration(
    name, seed, train, held_out, template, negative, weights, rate, tau, restart
):
    config = make(
        name=name,
        seed=seed,
        prompts={"train": train, "held_out": held_out, "template": template},
        sampling={"negative_prompt": negative},
        rewards={"weights": weights},
        selection={"tau": tau},
        tuning={"learning_rate": rate, "restart": restart},
    )
    assert Config.parse(config.to_toml()) == config


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
        tuning={"targets": ["attention", "everything"], "learning_rate": float("nan")},
    )
    for part in (
        "unknown key seeds, did you mean seed",
        "rounds: input should be greater than or equal to 1, not 0",
        "sampling.width: input should be a multiple of 8, not 65",
        "unknown key sampling.guidence_scale, did you mean guidance_scale",
        "tuning.targets.1: input should be 'attention', 'feed_forward', 'projection' or",
        "'convolution', not 'everything'",
        "tuning.learning_rate: input should be a finite number, not nan",
    ):
        assert part in message
    assert message.count("; ") == 5


def test_missing_settings_are_named():
    with pytest.raises(ValueError, match=r"^the configuration: name is missing; prompts is missing"):
        Config.parse("")
    with pytest.raises(ValueError, match=r"prompts\.train is missing"):
        Config.parse('name = "run"\n[prompts]')


def test_key_like_no_other_lists_the_known_ones():
    assert "unknown key selection.qqq, did you mean best or top_fraction or top_count or tau or replay?" in problems(
        selection={"qqq": 1}
    )


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
        ({"selection": {"best": 2, "tau": 1.0}}, "selection.tau lets every candidate win by weight"),
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
    ],
)
def test_overrides_that_mean_nothing_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        make().with_overrides([change])


def test_flat_names_every_setting_by_its_dotted_key():
    flat = make(rewards={"weights": {"a.b": 1.0}}).flat()
    assert (flat["name"], flat["tuning.rank"], flat["selection.tau"]) == ("run", 8, None)
    assert flat["rewards.weights"] == {"a.b": 1.0}
    assert not {"tuning", "rewards"} & set(flat)


def test_every_number_says_its_meaning():
    sections = [Config, *(field.annotation for field in Config.model_fields.values())]
    for section in sections:
        for name, field in getattr(section, "model_fields", {}).items():
            assert field.description or hasattr(field.annotation, "model_fields"), name
