"""The generated tokenizer against open_clip's own.

Both end a text with 49407; CLIPTokenizer fills up with 49407 too, as Stable Diffusion 1.5 does, and open_clip with 0.
Elsewhere they differ, and what Stable Diffusion 1.5 does stands: open_clip first repairs a text (curly quotes become
straight, ligatures and full-width letters and marks plain ones, control characters vanish) and resolves HTML entities,
twice.
"""

import json
import random
import string

import open_clip
import pytest
from transformers import CLIPTokenizer

from raft_diffusion.sd15.tokenizer import write_tokenizer

START, END = 49406, 49407
LETTERS = string.ascii_letters + string.digits + "".join(set(string.punctuation) - set("&<")) + " " * 12
SCRIPTS = (
    """
кошка в стиле моне|собака играет в парке|старый дом у реки|красный корабль на закате|зимний лес
γάτα σε πίνακα|ένα μπλε σπίτι|ο ήλιος και η θάλασσα|παλιό πλοίο
一只猫的水彩画|山水画 远处有一座桥|雪中的红色房子|穿宇航服的狗|星空下的湖
猫の水彩画|富士山と桜の木|赤い傘を持つ女の子|夜の東京の街|カタカナの看板
수채화 고양이|눈 덮인 산과 호수|빨간 자전거|도시의 밤
قطة مرسومة بالألوان المائية|بيت قديم قرب النهر|سفينة حمراء عند الغروب|كلب في الحديقة
חתול בסגנון מונה|בית ישן ליד הנהר|כלב משחק בפארק
एक बिल्ली का चित्र|नदी के पास पुराना घर|लाल नाव|बर्फीले पहाड़
แมวสีน้ำ|บ้านเก่าริมแม่น้ำ|เรือสีแดง
കറുത്ത പൂച്ച|பழைய வீடு|পুরানো বাড়ি
կատու նկարում|კატა ფერწერა|ድመት በሥዕል
mèo màu nước|žluťoučký kůň|größere Häuser über Straßen|señor niño pingüino|łódź żółta|ağaç ışık|ça déjà œuvre
""".replace("\n", "|")
    .strip("|")
    .split("|")
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def ours(folder):
    return CLIPTokenizer.from_pretrained(folder)


def check(ours, texts):
    expected = open_clip.tokenizer.SimpleTokenizer(context_length=77)(texts).tolist()
    found = ours(texts, padding="max_length", max_length=77, truncation=True).input_ids
    for text, row, other in zip(texts, found, expected, strict=True):
        end = row.index(END)
        assert row[0] == START and row[end:] == [END] * (77 - end), text
        assert [*row[: end + 1], *[0] * (76 - end)] == other, text


def test_it_is_the_published_vocabulary(folder, ours):
    assert len(ours) == len(json.loads((folder / "vocab.json").read_text(encoding="utf-8"))) == 49408
    assert (ours.bos_token_id, ours.eos_token_id, ours.pad_token_id, ours.model_max_length) == (START, END, END, 77)
    # ids that transformers documents for "a photo of a cat" (CLIPTokenizer, openai/clip-vit-large-patch14)
    assert ours("a photo of a cat").input_ids == [START, 320, 1125, 539, 320, 2368, END]


def test_a_thousand_random_prompts_have_open_clips_ids(ours):
    draw = random.Random(0)
    texts = ["".join(draw.choices(LETTERS, k=draw.randint(1, 120))) for _ in range(1000)]
    assert any(row[-2] != END for row in ours(texts, padding="max_length", max_length=77, truncation=True).input_ids)
    check(ours, texts)


def test_prompts_in_other_scripts_have_open_clips_ids(ours):
    assert len(SCRIPTS) >= 50 and len(set(SCRIPTS)) == len(SCRIPTS)
    check(ours, SCRIPTS)


@pytest.mark.parametrize(
    ("text", "repaired"),
    [
        ("cats &amp; dogs", "cats & dogs"),
        ("“cat”", '"cat"'),
        ("ﬁsh", "fish"),
        ("ｃａｔ", "cat"),
        ("a &lt;b&gt;", "a <b>"),
    ],
)
def test_where_open_clip_repairs_a_text_the_letters_stand(ours, text, repaired):
    theirs = open_clip.tokenizer.SimpleTokenizer(context_length=77)
    assert theirs([text]).tolist() == theirs([repaired]).tolist()
    assert ours(text).input_ids != ours(repaired).input_ids
