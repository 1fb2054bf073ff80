"""The table of known rewards, what is refused by name, and what importing the rewards costs."""

import subprocess
import sys

import pytest

from raft_diffusion.rewards import (
    AESTHETICS,
    KNOWN,
    PREFERENCES,
    TOWER_REWARDS,
    check_comparable,
    check_names,
    describe,
    score_name,
)

NAMES = [info.name for info in KNOWN]


def test_every_reward_is_known_once():
    assert [*TOWER_REWARDS, *PREFERENCES, "compressibility", "incompressibility"] == NAMES
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize("module", ["rewards", "rewards.compress", "rewards.custom", "rewards.heads"])
def test_importing_leaves_torch_out(module):
    code = f"import sys, raft_diffusion.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_the_description_tells_all_of_every_reward():
    text = describe()
    for info in KNOWN:
        assert all(part in text for part in (info.name, info.unit_range, info.source, info.licence))
    assert text.count("higher is better") == len(KNOWN)
    assert text.count("comparable within one prompt only") == 3
    assert text.count("comparable across prompts") == len(KNOWN) - 3


def test_what_looks_at_the_prompt_needs_one_and_compares_within_it_only():
    by_prompt = ["text_image", *PREFERENCES]
    assert [info.name for info in KNOWN if info.needs_prompt] == by_prompt
    assert [info.name for info in KNOWN if not info.comparable_across_prompts] == by_prompt


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "aestetic",
            "unknown reward 'aestetic': did you mean aesthetic( or aesthetic_v.)?\\? It must be one of text_im",
        ),
        ("aesthetic_v3", "did you mean aesthetic_v2 or aesthetic_v1\\? It must"),
        ("pick_score", "did you mean pickscore\\? It must"),
        ("hpsv2", "did you mean hpsv2.1\\? It must"),
        ("log_ratio", "log_ratio compares the model that is being tuned with its base, so it scores in a run alone"),
        ("zzz", "unknown reward 'zzz': it must be one of .*own as \"module:function\""),
        ("[/b]", "unknown reward '\\[/b\\]'"),
        ("my_rewards:", "must be written .module:function., such as my_rewards:brightness"),
        (":f", "must be written .module:function."),
    ],
)
def test_an_unknown_reward_gets_the_nearest_names(name, sentence):
    with pytest.raises(ValueError, match=sentence):
        check_names(["text_image", name])


def test_every_known_name_and_any_function_pass():
    check_names([*NAMES, "my_rewards:brightness", "package.module:object"])
    assert [score_name(name) for name in ("hpsv2.1", "my_rewards:brightness")] == ["hpsv2.1", "brightness"]


@pytest.mark.parametrize("name", ["text_image", *PREFERENCES])
def test_a_ranking_across_prompts_refuses_what_compares_within_one(name):
    with pytest.raises(ValueError, match=f"^{name} compares pictures of one prompt only, but top_fraction .* leave"):
        check_comparable({"aesthetic": 1, name: 0.5}, across=True)
    check_comparable({"aesthetic": 1, name: 0.5}, across=False)
    check_comparable({"aesthetic": 1, name: 0}, across=True)


def test_all_that_do_not_compare_are_told_with_those_that_do():
    sentence = (
        "^text_image and hpsv2.1 compare pictures.*or rank by aesthetic, aesthetic_v1, .*or a reward of your own$"
    )
    with pytest.raises(ValueError, match=sentence):
        check_comparable({"hpsv2.1": 1, "text_image": 1}, across=True)


def test_what_compares_and_what_is_the_users_own_may_rank_across_prompts():
    check_comparable(dict.fromkeys((*AESTHETICS, "compressibility", "brightness"), 1.0), across=True)
