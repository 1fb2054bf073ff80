import random

import pytest
import torch

from raft_diffusion.llm.answers import equal, extract
from raft_diffusion.llm.data import read_rows, references
from raft_diffusion.llm.metrics import diversity
from raft_diffusion.llm.pocket import nets, world
from raft_diffusion.llm.pocket.judge import BUCKETS, Judge, features
from raft_diffusion.llm.pocket.recipe import draw_sum


def test_reviews_are_mostly_bad_and_their_words_are_known():
    rng = random.Random(0)
    reviews = [world.write_review(rng) for _ in range(1000)]
    assert 0.37 < sum(review.positive for review in reviews) / 1000 < 0.47
    words = set(world.review_words())
    assert all(set(review.text.split()) <= words for review in reviews)
    assert all(len(review.text.split()) < 52 for review in reviews)


def test_a_word_alone_does_not_tell_praise():
    rng = random.Random(0)
    praise = " ".join(world.write_review(rng, positive=True).rest for _ in range(500)).split()
    blame = " ".join(world.write_review(rng, positive=False).rest for _ in range(500)).split()
    for word in ("moving", "dull", "not"):
        assert 0.1 < praise.count(word) / (praise.count(word) + blame.count(word)) < 0.9


def test_praise_alone_is_nearly_as_varied_as_both_kinds():
    rng = random.Random(0)
    both = diversity([world.write_review(rng).rest for _ in range(400)])
    praise = diversity([world.write_review(rng, positive=True).rest for _ in range(400)])
    assert praise.distinct_2 > 0.85 * both.distinct_2


def test_pupils_guess_wrong_and_work_right():
    rng = random.Random(0)
    answers = [(q, world.answer_sum(q, rng)) for q in world.SUMS]
    right = {True: [], False: []}
    for question, answer in answers:
        right[":" in answer].append(equal(extract(answer), world.right_answer(question)))
    assert world.right_answer("37+48=") == "85"
    assert 0.92 < sum(right[True]) / len(right[True]) < 0.99
    assert 0.25 < sum(right[False]) / len(right[False]) < 0.35
    work = [(q, a) for q, a in answers if ":" in a][:50]
    for question, answer in work:  # every step of the work holds
        for step in answer.partition(":")[0].split(";"):
            left, _, result = step.partition("=")
            assert sum(map(int, left.split("+"))) == int(result), (question, answer)


def test_no_training_text_holds_a_held_out_sum():
    rng = random.Random(0)
    asked = {draw_sum(rng).partition("=")[0] + "=" for _ in range(4000)}
    assert not asked & set(world.HELD_OUT_SUMS)
    assert len(world.HELD_OUT_SUMS) > len(world.SUMS) / 6


def test_held_out_prompts_are_apart():
    for source in ("pocket-reviews", "pocket-sums"):
        train, held_out = (read_rows(source, held_out=side, limit=None) for side in (False, True))
        assert not {row["prompt"] for row in train} & {row["prompt"] for row in held_out}
        assert min(len(train), len(held_out)) >= 48
    assert len(read_rows("pocket-sums", held_out=True, limit=7)) == 7
    assert set(references("pocket-reviews")) == {"perplexity", "perplexity_both_kinds"}


def test_the_perplexity_of_sums_is_that_of_right_answers_to_new_ones():
    (rows,) = references("pocket-sums").values()
    assert {"prompt": "11+19=", "completion": "30"} in rows
    for row in rows:
        a, b = row["prompt"].removesuffix("=").split("+")
        assert int(row["completion"]) == int(a) + int(b)
    asked = {row["prompt"] for row in read_rows("pocket-sums", held_out=False, limit=None)}
    assert not asked & {row["prompt"] for row in rows}


@pytest.mark.parametrize("make", [nets.words_tokenizer, nets.characters_tokenizer])
def test_texts_and_tokens_map_onto_each_other(make, tmp_path):
    from transformers import AutoTokenizer

    rng = random.Random(0)
    tokenizer = make()
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for _ in range(50):
        if make is nets.words_tokenizer:
            review = world.write_review(rng)
            head, tail = review.opening, review.rest
        else:
            head = rng.choice(world.SUMS)
            tail = world.answer_sum(head, rng)
        ids = again(head).input_ids + again(tail).input_ids
        assert ids == tokenizer(head + tail).input_ids
        assert tokenizer.unk_token_id not in ids
        assert again.decode(ids) == head + tail
        assert len(ids) < nets.LONGEST


def test_the_judge_weighs_words_and_pairs():
    counts = features(["good film", "good good"])
    assert counts.shape == (2, BUCKETS)
    assert counts.sum(1).tolist() == [3, 3]
    weight = (features(["not dull"]) - features(["not"]) - features(["dull"]))[0]  # the pair alone
    judge = Judge(weight, torch.tensor([-0.5]))
    assert judge.positive([" it is not dull .", " it is dull .", " not so dull"]) == [1.0, 0.0, 0.0]
