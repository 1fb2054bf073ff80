import pytest
import torch

from raft_diffusion.core.records import Draw, Prompt, Sample
from raft_diffusion.llm.completion import Completion
from raft_diffusion.llm.pocket import nets
from raft_diffusion.llm.rewards import ExactAnswer, SequenceClassifier
from raft_diffusion.rewards.custom import load_custom


def sample(prompt, text, k=0):
    return Sample(Draw(Prompt(prompt), k, 0), Completion(text, (1,), (2,)))


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    tokenizer = nets.words_tokenizer()
    return nets.make_classifier(len(tokenizer)).eval(), tokenizer


@pytest.mark.parametrize("reads", ["whole", "completion"])
def test_a_classifier_scores_as_a_plain_pass_does(classifier, reads):
    model, tokenizer = classifier
    samples = [sample("a drama from norway", " : the plot is dull ."), sample("a fable from kenya", " : see it .", k=1)]
    reward = SequenceClassifier(model, tokenizer, name="s", label="positive", reads=reads, batch_size=2)
    expected = []
    for item in samples:
        text = item.prompt.text + item.data.text if reads == "whole" else item.data.text
        with torch.no_grad():
            expected.append(model(torch.tensor([tokenizer(text).input_ids])).logits[0, 1].item())
    assert reward(samples)["s"] == pytest.approx(expected, abs=1e-5)


def test_a_classifier_reads_a_chat_through_its_template(classifier):
    model, tokenizer = classifier
    with pytest.raises(ValueError, match="no chat template"):
        SequenceClassifier(model, tokenizer, name="s", label=1, reads="chat")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    chat = SequenceClassifier(model, tokenizer, name="s", label=1, reads="chat")
    whole = SequenceClassifier(model, tokenizer, name="s", label=1)
    samples = [sample("a drama", " from norway")]
    assert chat(samples) == whole(samples)


def test_a_classifier_without_the_class_is_refused(classifier):
    with pytest.raises(ValueError, match="negative, positive and none is 'joy'"):
        SequenceClassifier(*classifier, name="s", label="joy")
    with pytest.raises(ValueError, match="name one as its label"):
        SequenceClassifier(*classifier, name="s")
    with pytest.raises(ValueError, match="choose from whole"):
        SequenceClassifier(*classifier, name="s", label=0, reads="half")


def test_an_exact_answer_is_one_or_zero():
    reward = ExactAnswer({"7+8=": "15", "half?": "1/2"})
    samples = [sample("7+8=", "15"), sample("7+8=", "5"), sample("half?", r"\boxed{0.5}"), sample("half?", "no idea")]
    assert reward(samples) == {"exact": [1.0, 0.0, 1.0, 0.0]}
    with pytest.raises(ValueError, match="no answer is known"):
        reward([sample("9+9=", "18")])


def test_a_function_of_yours_ranks_texts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_text_rewards.py").write_text(
        "def brevity(texts, prompts):\n    return [-len(text) for text in texts]\n"
        "def wrong(texts):\n    return []\n"
        "def single(texts, prompts):\n    return 1.0\n"
    )
    reward = load_custom("my_text_rewards:brevity", datum="text")
    assert reward([sample("a", "bb"), sample("a", "c")]) == {"brevity": [-2, -1]}
    with pytest.raises(ValueError, match=r"the list of texts and the list of their prompts.*wrong\(texts, prompts\)"):
        load_custom("my_text_rewards:wrong", datum="text")
    with pytest.raises(ValueError, match="one number a text"):
        load_custom("my_text_rewards:single", datum="text")([sample("a", "b")])


def test_a_long_text_loses_its_beginning(classifier):
    model, tokenizer = classifier
    long = sample("a drama from norway", " : the plot is dull . the cast is dull . see it .")
    reward = SequenceClassifier(model, tokenizer, name="s", label=1, max_length=3)
    with torch.no_grad():
        last = model(torch.tensor([tokenizer(" see it .").input_ids])).logits[0, 1].item()
    assert reward([long])["s"] == pytest.approx([last], abs=1e-5)


def test_a_tokenizer_without_padding_scores_as_one_with_it(classifier):
    model, tokenizer = classifier
    samples = [sample("a drama", " : see it ."), sample("a fable from kenya", " : the plot is dull .", k=1)]
    expected = SequenceClassifier(model, tokenizer, name="s", label=1)(samples)
    tokenizer.pad_token, model.config.pad_token_id = None, None
    found = SequenceClassifier(model, tokenizer, name="s", label=1)(samples)
    assert found["s"] == pytest.approx(expected["s"], abs=1e-5)
