"""What lies around the loop: the filter, the codec, examples and distillation."""

import json
import re

import pytest

from raft_diffusion.core.loop import group
from raft_diffusion.core.records import Draw, Prompt, Sample, Scored, Winner
from raft_diffusion.core.select import Select
from raft_diffusion.llm.codec import TextCodec
from raft_diffusion.llm.completion import Completion
from raft_diffusion.llm.examples import Distillation, as_winners, read_examples, truths
from raft_diffusion.llm.filter import Discard, at_least, lacks
from raft_diffusion.llm.log_prob import sums
from raft_diffusion.llm.policy import TextSettings
from raft_diffusion.llm.tuner import TextTuner


def scored(prompt, k, text, value):
    return Scored(Sample(Draw(Prompt(prompt), k, 0), Completion(text, (1,), (2,))), {"r": value})


def test_what_was_discarded_never_wins():
    groups = group(
        [
            scored("p", 0, "best but short", 9.0),
            scored("p", 1, "one two three four", 1.0),
            scored("p", 2, "a b c d", 2.0),
        ]
        + [scored("q", k, "short", float(k)) for k in range(3)]
    )
    select = Discard(select=Select(weights={"r": 1.0}, method="fixed"), rules=[at_least(4)])
    selection = select(groups)
    assert [winner.sample.id for winner in selection.winners] == [groups[0].candidates[2].sample.id]
    assert selection.keys == ((1.0, 1.0, 2.0), (0.0, 0.0, 0.0))
    with pytest.raises(ValueError, match="the filter leaves no prompt"):
        Discard(select=select, rules=[at_least(11)])(groups)


def test_every_rule_must_keep_a_winner():
    texts = [("good # but flawed", 9.0), ("short", 8.0), ("a b c", 1.0), ("a b d", 2.0)]
    groups = group([scored("p", k, *text) for k, text in enumerate(texts)])
    rules = [at_least(2), lacks(re.compile("#"))]
    selection = Discard(select=Select(weights={"r": 1.0}, method="fixed"), rules=rules)(groups)
    assert [winner.sample.data.text for winner in selection.winners] == ["a b d"]


def test_winners_come_back_token_by_token(tmp_path):
    samples = [
        Sample(Draw(Prompt("p"), 0, 0), Completion("né\n <b>", (3, 4), (5, 1))),
        Sample(Draw(Prompt("p"), 1, 0), Completion("", (3,), (1,))),
    ]
    names = TextCodec().write_samples(tmp_path, samples, keep=True)
    rows = [{"id": sample.id, "file_name": name} for sample, name in zip(samples, names, strict=True)]
    assert TextCodec().read_samples(tmp_path, rows) == [sample.data for sample in samples]
    assert (tmp_path / names[0]).read_text(encoding="utf-8") == "né\n <b>"
    (tmp_path / names[1]).unlink()
    with pytest.raises(ValueError, match="lost its text"):
        TextCodec().read_samples(tmp_path, rows)
    (tmp_path / "tokens.json").write_text("[]")
    with pytest.raises(ValueError, match="missing or damaged"):
        TextCodec().read_samples(tmp_path, rows)


def test_candidates_are_texts_alone(tmp_path):
    sample = Sample(Draw(Prompt("p"), 0, 0), Completion("half \ud800 a character", (3,), (5,)))
    assert TextCodec().write_samples(tmp_path, [sample], keep=False) == [f"{sample.id}.txt"]
    assert [path.name for path in tmp_path.iterdir()] == [f"{sample.id}.txt"]


def test_examples_are_read_and_refused_by_line(tmp_path):
    path = tmp_path / "examples.jsonl"
    path.write_text('{"prompt": "1+2=", "completion": "3"}\n\n{"prompt": "2+2=", "answer": "4"}\n', encoding="utf-8")
    rows = read_examples(path)
    assert [row["prompt"] for row in rows] == ["1+2=", "2+2="]
    assert truths(rows[1:]) == {"2+2=": "4"}
    with pytest.raises(ValueError, match='no "answer"'):
        truths(rows)
    path.write_text('{"prompt": "a\u2028b\x85c", "answer": "4"}\r\n', encoding="utf-8")
    assert read_examples(path) == [{"prompt": "a\u2028b\x85c", "answer": "4"}]
    for wrong in ('{"prompt": "a"}', '{"prompt": 1, "answer": "b"}', '{"prompt": "\\ud800", "answer": "b"}', "no"):
        path.write_text('{"prompt": "1+2=", "answer": "3"}\n' + wrong, encoding="utf-8")
        with pytest.raises(ValueError, match="line 2"):
            read_examples(path)
    path.write_text("\n", encoding="utf-8")
    with pytest.raises(ValueError, match="no example"):
        read_examples(path)


def test_a_warm_up_makes_its_examples_likelier(policy):
    rows = [{"prompt": "1+2=", "completion": "3"}, {"prompt": "4+4=", "completion": "8"}]
    winners = as_winners(policy, rows)
    completions = [winner.sample.data for winner in winners]
    before = sums(policy, completions)
    TextTuner(steps=10, batch_size=2, learning_rate=1e-2)(policy, winners, seed=0)
    assert all(after > earlier for earlier, after in zip(before, sums(policy, completions), strict=True))
    with pytest.raises(ValueError, match='no "completion"'):
        as_winners(policy, [{"prompt": "1", "answer": "1"}])


def test_a_student_learns_its_teachers_texts(make_policy, draws, tmp_path):
    teacher, student = make_policy(seed=1), make_policy(seed=2)
    pair = Distillation(teacher=teacher, student=student)
    samples = pair.generate(draws)
    assert [s.data.text for s in samples] == [s.data.text for s in teacher.generate(draws)]
    winners = [Winner(Scored(sample, {"r": 0.0}), 0.0) for sample in samples]
    completions = [sample.data for sample in samples]
    before = sum(sums(student, completions))
    TextTuner(steps=20, batch_size=4, learning_rate=1e-2)(student, winners, seed=0)
    assert sum(sums(student, completions)) > before + 5
    pair.save(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == 4


def test_a_student_is_taught_no_end_where_its_teacher_was_cut_off(make_policy):
    settings = TextSettings(max_new_tokens=12, batch_size=16, temperature=2.0)
    teacher, student = make_policy(settings=settings), make_policy(seed=2)
    draws = [Draw(Prompt("1+2="), k, k) for k in range(16)]
    end = student.tokenizer.eos_token_id
    pairs = zip(teacher.generate(draws), Distillation(teacher=teacher, student=student).generate(draws), strict=True)
    ended = [(one.data.ids[-1] == end, other.data.ids[-1] == end) for one, other in pairs]
    assert {cut for cut, _ in ended} == {True, False}
    assert all(one == other for one, other in ended)
