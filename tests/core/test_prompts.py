import csv
import math
import tomllib
from pathlib import Path

import pytest

from raft_diffusion.core.prompts import carried, draw_round, evaluation_draws, find_prompts, read_prompts, split
from raft_diffusion.core.records import Prompt

MANY = [Prompt(f"prompt {i}") for i in range(400)]


def texts(prompts):
    return [prompt.text for prompt in prompts]


@pytest.mark.parametrize(
    "content",
    [
        b"a cat\na dog\n",
        b"\xef\xbb\xbfa cat\r\na dog",
        b"\xef\xbb\xbf# source: me\n\n  a cat\t\n   # a comment\n\n\na dog\n\n",
    ],
    ids=["plain", "windows", "comments"],
)
def test_prompt_file(tmp_path, content):
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    assert read_prompts(path) == read_prompts(str(path)) == [Prompt("a cat"), Prompt("a dog")]


def test_prompt_keeps_its_own_signs(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("(a cat:1.2), #1 in style\x0b\u2028\nkatze, größe 🐈\n", encoding="utf-8")
    assert texts(read_prompts(path)) == ["(a cat:1.2), #1 in style", "katze, größe 🐈"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no prompt"),
        (b"\xef\xbb\xbf# only\n\n", "holds no prompt"),
        (b"caf\xe9\n", "is not UTF-8 .byte 3."),
        ("a cat\n".encode("utf-16"), "is not UTF-8"),
        (b"a cat\na dog\n a cat\na dog\n", "line 3 repeats line 1 .'a cat'.; line 4 repeats line 2 .'a dog'."),
    ],
)
def test_bad_prompt_file_is_refused_by_name(tmp_path, content, message):
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"prompts.txt {message}|prompts.txt holds a prompt twice: {message}"):
        read_prompts(path)


def test_missing_file_and_folder_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"there is no prompt file .*none\.txt"):
        read_prompts(tmp_path / "none.txt")
    with pytest.raises(ValueError, match="is a folder"):
        read_prompts(tmp_path)


def test_path_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "file").write_text("a cat")
    with pytest.raises(ValueError, match="cannot be read"):
        read_prompts(tmp_path / "file" / "prompts.txt")


CSV = """Prompt,weight,negative_prompt
a cat,2,blurry
"a dog, running","0.5",

"two
lines"
größe 🐈,,"dull, grey"
"""
TOML = """[[prompt]]
text = "a cat"
weight = 2
negative = "blurry"
[[prompt]]
text = "a dog, running"
weight = 0.5
[[prompt]]
text = "two\\nlines"
[[prompt]]
text = "größe 🐈"
negative = "dull, grey"
"""
SAME = [
    Prompt("a cat", negative="blurry", weight=2.0),
    Prompt("a dog, running", weight=0.5),
    Prompt("two\nlines"),
    Prompt("größe 🐈", negative="dull, grey"),
]


@pytest.mark.parametrize(("suffix", "text"), [(".csv", CSV), (".CSV", "\ufeff" + CSV), (".toml", TOML)])
def test_prompt_file_with_weights_and_negatives(tmp_path, suffix, text):
    path = tmp_path / f"prompts{suffix}"
    path.write_text(text, encoding="utf-8")
    assert read_prompts(path) == find_prompts(str(path)) == SAME


def test_csv_of_a_spreadsheet(tmp_path):
    path = tmp_path / "prompts.csv"
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file)  # \r\n between rows, as a spreadsheet saves them
        writer.writerows([["weight", "text", "negative"], ["", "", ""], ["3", 'a "cat"', "x"], ["1", "# a dog", ""]])
    assert read_prompts(path) == [Prompt('a "cat"', negative="x", weight=3.0), Prompt("# a dog")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r" holds no prompt; write one a row, under a first row"),
        ("prompt\n\n", r" holds no prompt; write one a row"),
        ("weight\n1\n", r" has no column prompt; name one so in its first row"),
        ("prompt,wieght\n", r": its first row names column 2 'wieght', which is unknown; use weight$"),
        ("prompt,\n", r": its first row names column 2 '', which is unknown; use prompt or text or weight"),
        ("prompt;weight\n", r": .*column 1 'prompt;weight', which is unknown; separate the columns with commas"),
        ("prompt,text\na,b\n", r": column 'text' says what another column says"),
        ("prompt,weight\na,1\n\nb,heavy\n", r", row 4: the weight is 'heavy'; it must be a finite number above 0"),
        ("prompt,weight\na,0\n", r", row 2: the weight is 0\.0"),
        ("prompt,weight\na,nan\n", r", row 2: the weight is nan"),
        ("prompt,weight\na,-inf\n", r", row 2: the weight is -inf"),
        ("prompt,weight\n,2\n", r", row 2 has no prompt; write its words or take it out"),
        ("prompt,weight\na cat, sitting,2\n", r", row 2 has 3 cells under 2 column names; .* in double quotes"),
        ('prompt\na\n"b\n', r" is no valid CSV after row 2: unexpected end of data"),
        ("prompt\na\nb\na\n", r" holds a prompt twice: row 4 repeats row 2 \('a'\); keep one of each"),
    ],
)
def test_bad_csv_is_refused_by_row(tmp_path, text, message):
    path = tmp_path / "prompts.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"the prompt file .*prompts\.csv{message}"):
        read_prompts(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r" holds no prompt; write one \[\[prompt\]\] with a text for each"),
        ("prompt = ", r" is no valid TOML: "),
        ('[[prompts]]\ntext = "a"', r" holds the unknown key 'prompts'; write one \[\[prompt\]\] for each"),
        ('[prompt]\ntext = "a"', r": prompt is no list of tables; write \[\[prompt\]\] above each"),
        ('prompt = ["a"]', r": prompt is no list of tables"),
        ('[[prompt]]\ntext = "a"\n[[prompt]]\ntxt = "b"', r", prompt 2: unknown key txt, did you mean text"),
        ('[[prompt]]\ntext = "a"\nnegative_prompt = "b"', r", prompt 1: unknown key .*, did you mean negative"),
        ('[[prompt]]\ntext = "a"\n"q\\nq" = 1', r", prompt 1: unknown key q\\nq, did you mean text or weight or negat"),
        ("[[prompt]]\nweight = 1", r", prompt 1 has no prompt; write its words"),
        ("[[prompt]]\ntext = 1", r", prompt 1: text is 1; put it in quotes"),
        ('[[prompt]]\ntext = "a"\nnegative = false', r", prompt 1: negative is false; put it in quotes"),
        ('[[prompt]]\ntext = "a"\nweight = "2"', r", prompt 1: the weight is '2'; it must be a finite number above 0"),
        ('[[prompt]]\ntext = "a"\nweight = true', r", prompt 1: the weight is true"),
        ('[[prompt]]\ntext = "a"\nweight = inf', r", prompt 1: the weight is inf"),
        ('[[prompt]]\ntext = "a"\n[[prompt]]\ntext = " a"', r" holds a prompt twice: prompt 2 repeats prompt 1"),
    ],
)
def test_bad_toml_is_refused_by_prompt(tmp_path, text, message):
    path = tmp_path / "prompts.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"the prompt file .*prompts\.toml{message}"):
        read_prompts(path)


@pytest.mark.parametrize(
    ("name", "count", "some"),
    [
        ("cifar10", 10, {"airplane", "automobile", "truck"}),
        ("cifar100", 100, {"aquarium fish", "lawn mower", "sweet pepper", "willow tree", "worm"}),
        ("animals", 45, {"cat", "owl", "whale"}),
        ("styles", 48, {"monet style cat", "monet style dog", "pixel art style ship"}),
    ],
)
def test_carried_list(name, count, some):
    prompts = find_prompts(name)
    assert len({prompt.id for prompt in prompts}) == len(prompts) == count
    assert some < set(texts(prompts))
    assert all(p.text == p.text.lower() and p.text.replace(" ", "").isalpha() for p in prompts)
    lines = carried()[name].read_text(encoding="utf-8").split("\n")
    header = [line for line in lines if line.startswith("#")]
    assert lines[: len(header)] == header and len(header) <= 6
    assert any(line.startswith("# Source: ") for line in header)
    assert any(line.startswith("# Licence: ") for line in header)


def test_carried_lists_lie_inside_the_package_that_is_shipped():
    assert set(carried()) == {"animals", "cifar10", "cifar100", "styles"}
    root = Path(__file__).parents[2]
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    (shipped,) = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert all(path.is_relative_to(root / shipped) for path in carried().values())


@pytest.mark.parametrize(
    "words",
    ["a cat", "cifar", "animal", "a/b", "monet style cat.", "x" * 5000, "an e.g. cat", "a\0b", "größe 🐈"],
)
def test_words_are_a_prompt(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_prompts(f" {words} ") == [Prompt(words)]


def test_what_is_there_or_looks_like_a_file_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine").write_text("a cat\na dog\n")
    Path("animals").mkdir()
    Path("folder").mkdir()
    assert texts(find_prompts("mine")) == ["a cat", "a dog"]
    assert len(find_prompts("animals")) == 45
    for missing in ("mine.txt", "a cat.CSV", "mine.toml", "nowhere/"):
        with pytest.raises(ValueError, match="there is no prompt file"):
            find_prompts(missing)
    for folder in ("folder", "folder/"):
        with pytest.raises(
            ValueError, match=r"prompt file folder is a folder; give a text file .*, a \.csv or a \.toml"
        ):
            find_prompts(folder)


def test_no_words_are_refused():
    for nothing in ("", " \n"):
        with pytest.raises(ValueError, match=r"the prompt is empty; .* lists animals, cifar10, cifar100, styles"):
            find_prompts(nothing)


def test_words_in_another_encoding_are_refused():
    """What a shell hands over for bytes that are no UTF-8."""
    with pytest.raises(ValueError, match=r"the prompt 'caf\\udce9' holds characters that are no UTF-8"):
        find_prompts(b"caf\xe9".decode("utf-8", "surrogateescape"))


def test_split_takes_about_its_share_and_keeps_the_order():
    train, held_out = split(MANY, 0.25, seed=0)
    assert len(held_out) == pytest.approx(100, abs=4 * math.sqrt(400 * 0.25 * 0.75))
    assert sorted(train + held_out, key=MANY.index) == MANY
    assert all(side == sorted(side, key=MANY.index) for side in (train, held_out))
    assert split(MANY, 0, seed=0) == (MANY, [])


def test_split_survives_added_and_moved_prompts_and_a_growing_share():
    _, held_out = split(MANY[:200], 0.25, seed=0)
    assert set(split(MANY[::-1], 0.25, seed=0)[1]) & set(MANY[:200]) == set(held_out)
    assert set(held_out) < set(split(MANY[:200], 0.5, seed=0)[1])
    assert held_out != split(MANY[:200], 0.25, seed=1)[1]


def test_split_refuses_what_leaves_nothing():
    for fraction in (-0.1, 1.0, math.nan):
        with pytest.raises(ValueError, match="at least 0 and below 1"):
            split(MANY, fraction, seed=0)
    with pytest.raises(ValueError, match="leaves none to train on"):
        split(MANY[:1], 0.999999, seed=0)


def test_round_of_all_prompts():
    prompts = MANY[:3]
    draws = draw_round(prompts, index=1, seed=0, per_round=None, k=2, groups_per_prompt=2)
    assert [(d.prompt, d.group, d.k) for d in draws] == [(p, k // 2, k) for p in prompts for k in range(4)]
    assert len({d.id for d in draws}) == len({d.seed for d in draws}) == 12


def test_draws_of_a_prompt_do_not_depend_on_the_others():
    whole = draw_round(MANY[:5], index=2, seed=0, per_round=None, k=3)
    assert set(draw_round(MANY[4:5], index=2, seed=0, per_round=None, k=2)) < set(whole)


def test_prompts_of_a_round_are_drawn_by_weight():
    """First draw without replacement: a prompt comes with its share of the weight, here 3 of 4."""
    prompts = [Prompt("often", weight=3.0), Prompt("seldom", weight=1.0)]
    drawn = [draw_round(prompts, index=i, seed=0, per_round=1, k=1)[0].prompt.text for i in range(1000)]
    assert drawn.count("often") == pytest.approx(750, abs=4 * math.sqrt(1000 * 0.75 * 0.25))


def test_prompts_of_a_round_are_distinct_in_order_and_new_each_round():
    rounds = [[d.prompt for d in draw_round(MANY[:8], index=i, seed=0, per_round=4, k=1)] for i in range(1, 6)]
    assert all(len(set(r)) == 4 and r == sorted(r, key=MANY.index) for r in rounds)
    assert len({tuple(r) for r in rounds}) > 1
    assert texts(rounds[0]) == [d.prompt.text for d in draw_round(MANY[:8], index=1, seed=0, per_round=4, k=1)]


@pytest.mark.parametrize(
    ("prompts", "per_round", "message"),
    [
        (MANY[:2] + MANY[:1], None, "'prompt 0' is given twice"),
        ([Prompt("a", weight=0.0)], None, "weight of 'a' is 0.0"),
        ([Prompt("a", weight=math.inf)], None, "weight of 'a' is inf"),
        (MANY[:2], 3, "cannot draw 3 of 2 prompts"),
        (MANY[:2], 0, "cannot draw 0 of 2 prompts"),
    ],
)
def test_round_that_cannot_be_drawn_is_refused(prompts, per_round, message):
    with pytest.raises(ValueError, match=message):
        draw_round(prompts, index=1, seed=0, per_round=per_round, k=2)


def test_evaluation_spreads_over_the_prompts():
    draws = evaluation_draws(MANY[:3], 7, seed=0)
    assert texts(d.prompt for d in draws) == [f"prompt {i}" for i in (0, 1, 2, 0, 1, 2, 0)]
    assert [d.k for d in draws] == [0, 0, 0, 1, 1, 1, 2]
    assert evaluation_draws(MANY[:3], 4, seed=0) == draws[:4]
    assert evaluation_draws([], 0, seed=0) == []
    with pytest.raises(ValueError, match="at least one prompt"):
        evaluation_draws([], 1, seed=0)


def test_evaluation_seeds_never_meet_training_seeds():
    for seed in (0, 1):
        evaluation = {d.seed for d in evaluation_draws(MANY[:20], 400, seed=seed)}
        training = {
            d.seed for index in range(50) for d in draw_round(MANY[:20], index=index, seed=seed, per_round=None, k=20)
        }
        assert (len(evaluation), len(training)) == (400, 20_000)
        assert not evaluation & training
