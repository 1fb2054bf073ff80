import pytest

from raft_diffusion.core.config import Config
from raft_diffusion.jobs import PRESETS, config_of, load_config
from raft_diffusion.llm.config import TextConfig
from raft_diffusion.modality import is_text

NAMES = sorted(path.stem for path in PRESETS.glob("*.toml") if is_text(path))


def test_there_is_a_preset_for_each_job():
    assert NAMES == ["hh-rlhf", "imdb-positive", "math", "pocket-reviews", "pocket-sums"]


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_is_read_and_comes_back_from_toml(name, tmp_path):
    config = load_config(name)
    assert config.name == name
    path = tmp_path / "config.toml"
    path.write_text(config.to_toml(), encoding="utf-8")
    assert TextConfig.load(path) == config


@pytest.mark.parametrize("name", ["imdb-positive", "hh-rlhf", "math"])
def test_a_preset_for_a_real_model_names_its_data_and_sources(name):
    text = (PRESETS / f"{name}.toml").read_text(encoding="utf-8")
    assert "# Data:" in text
    assert "# Sources:" in text
    assert load_config(name).prompts.train in text.partition("kind")[0]


def test_settings_are_changed_by_key():
    config = load_config("pocket-reviews").with_overrides(
        ["rewards.weights.log_ratio=-0.1", "sampling.temperature=0.7", "prompts.per_round=none", "model=some/model"]
    )
    assert config.rewards.weights == {"classifier": 1.0, "log_ratio": -0.1}
    assert config.prompts.per_round is None
    assert config.flat()["sampling.temperature"] == 0.7
    assert config.flat()["model"] == "some/model"
    assert config.flat()["rewards.weights"] == {"classifier": 1.0, "log_ratio": -0.1}
    assert "log_ratio" not in config.with_overrides(["rewards.weights.log_ratio=none"]).rewards.weights


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("sampling.temprature=1.0", "did you mean temperature"),
        ("sampling.temperature=0", "greater than 0"),
        ("selection.best=9", "selection.best is 9"),
        ("rewards.weights.joy=1.0", "known are classifier, exact, log_ratio"),
        ("rewards.classifier=none", "set rewards.classifier"),
        ("rewards.weights={ classifier = 0.0 }", "nothing ranks"),
        ("rewards.discard=(", "no regular expression"),
        ("sampling.system=be kind", "chat template"),
        ("teacher_lora=runs/a/lora", "set teacher, too"),
        ("kind=picture", "kind"),
        ("seed", "KEY=VALUE"),
        ("seed.a=1", "is a setting"),
    ],
)
def test_a_mistake_is_told_in_one_line(change, words):
    with pytest.raises(ValueError, match=words) as caught:
        load_config("pocket-reviews").with_overrides([change])
    assert "\n" not in str(caught.value)


def test_sections_are_held_against_each_other_beside_a_wrong_field():
    changes = ["rounds=0", "selection.top_fraction=0.5", "rewards.method=zscore", "selection.best=9"]
    with pytest.raises(ValueError, match=r"rounds: .*selection.best is 9.*set rewards.method to \"fixed\""):
        load_config("pocket-reviews").with_overrides(changes)


def test_a_file_with_mistakes_is_told(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text('kind = "text"\nname = "a b"\n', encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"a\.toml: name: .*; model is missing; prompts is missing; rewards is missing"
    ):
        load_config(str(path))


def test_either_kind_of_file_is_known_by_its_kind(tmp_path):
    assert isinstance(config_of(PRESETS / "math.toml"), TextConfig)
    assert isinstance(config_of(PRESETS / "pocket-monet.toml"), Config)
    with pytest.raises(ValueError, match=r"math\.toml is of a text run, and this is for runs that make pictures"):
        Config.load(PRESETS / "math.toml")
    with pytest.raises(ValueError, match=r"pocket-monet\.toml is of a run that makes pictures"):
        TextConfig.load(PRESETS / "pocket-monet.toml")


@pytest.mark.parametrize("option", ["variant", "lora", "prediction_type", "recipe"])
def test_what_pictures_alone_have_is_refused(option):
    with pytest.raises(ValueError, match=f"--{option.replace('_', '-')} is for runs that make pictures"):
        load_config("pocket-sums", **{option: "x"})


def test_the_command_lines_options_change_a_text_run():
    config = load_config(
        "pocket-sums", seed=3, model="some/model", prompts="mine.jsonl", threads=2, changes=["rounds=9"]
    )
    assert (config.seed, config.model, config.prompts.train, config.threads) == (3, "some/model", "mine.jsonl", 2)
    assert config.rounds == 9
