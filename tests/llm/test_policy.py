import json

import pytest
import torch

from raft_diffusion.core.records import Draw, Prompt
from raft_diffusion.llm.pocket import nets
from raft_diffusion.llm.policy import TextPolicy, TextSettings, choose


def texts(samples):
    return [(sample.id, sample.data.ids) for sample in samples]


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_a_sample_follows_from_its_draw_alone(make_policy, draws, batch_size):
    settings = TextSettings(max_new_tokens=12, batch_size=batch_size)
    together = make_policy(learned=True).generate(draws, settings=settings)
    one = make_policy(learned=True)
    alone = [one.generate([draw])[0] for draw in reversed(draws)]
    assert texts(together) == texts(reversed(alone))
    assert len({sample.data.ids for sample in together}) > 4


def test_sampling_equals_a_plain_loop_without_padding_or_cache(policy, draws):
    """The reference runs the whole text through the model for every token and takes the same uniform numbers."""
    for sample in policy.generate(draws):
        ids = list(policy.tokenizer(sample.prompt.text).input_ids)
        generator = torch.Generator().manual_seed(sample.draw.seed)
        uniform = torch.rand(12, generator=generator, dtype=torch.float64).tolist()
        answer = []
        for number in uniform:
            with torch.no_grad():
                shares = policy.model(torch.tensor([ids])).logits[0, -1].double().softmax(0).cumsum(0)
            answer.append(next(place for place, upto in enumerate(shares.tolist()) if upto > number))
            ids.append(answer[-1])
            if answer[-1] == policy.tokenizer.eos_token_id:
                break
        assert sample.data.ids == tuple(answer)
        assert sample.data.text == policy.tokenizer.decode(answer, skip_special_tokens=True)


def test_a_near_zero_temperature_takes_the_likeliest_token_as_transformers_does(make_policy):
    policy = make_policy(settings=TextSettings(temperature=1e-4, max_new_tokens=6))
    (sample,) = policy.generate([Draw(Prompt("12+34="), 0, 7)])
    ids = torch.tensor([policy.tokenizer("12+34=").input_ids])
    plain = policy.model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=6)
    assert list(sample.data.ids) == plain[0, ids.shape[1] :].tolist()


def test_the_nucleus_is_the_smallest_set_that_reaches_top_p():
    logits = torch.tensor([[0.1, 0.5, 0.25, 0.15]]).log().repeat(1000, 1)
    uniform = torch.arange(1000, dtype=torch.float64) / 1000

    def drawn(top_p):
        counts = choose(logits, uniform, TextSettings(top_p=top_p)).bincount(minlength=4)
        return [round(count / 1000, 2) for count in counts.tolist()]

    assert drawn(1.0) == [0.1, 0.5, 0.25, 0.15]
    assert drawn(0.7) == [0.0, 0.67, 0.33, 0.0]
    assert drawn(0.5) == [0.0, 1.0, 0.0, 0.0]


def test_temperature_divides_the_logits():
    logits = torch.tensor([[0.2, 0.8]]).log().repeat(1000, 1)
    uniform = torch.arange(1000, dtype=torch.float64) / 1000
    # at temperature 0.5 the odds are squared: 1 to 16
    assert choose(logits, uniform, TextSettings(temperature=0.5)).float().mean().item() == pytest.approx(
        16 / 17, abs=2e-3
    )


def test_the_answer_ends_with_the_first_end_token(make_policy):
    policy = make_policy(settings=TextSettings(max_new_tokens=60, batch_size=16, temperature=2.0))
    samples = policy.generate([Draw(Prompt("1+2="), k, k) for k in range(16)])
    end = policy.tokenizer.eos_token_id
    ended = [sample.data.ids for sample in samples if end in sample.data.ids]
    assert ended
    assert all(ids.index(end) == len(ids) - 1 for ids in ended)
    assert all(len(sample.data.ids) == 60 for sample in samples if sample.data.ids not in ended)


def test_chat_prompts_go_through_the_template(make_policy):
    policy = make_policy(chat=True, system="99")
    decoded = policy.tokenizer.decode(policy.encode("1+2="))
    assert decoded == "199;01+2=;2"


def test_an_answer_keeps_the_space_before_it(make_policy):
    """Llama's kind of tokens: "_a" is " a", and the space of the first token of a text is dropped."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({"\u2581yes": 0, "\u2581and": 1, "<end>": 2}, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    policy = make_policy()
    policy.tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
    assert policy.tokenizer.decode([1, 0]) == "and yes"
    assert policy.decode([0], [1, 0, 2]) == " and yes"


def test_the_adapter_starts_as_nothing_and_can_be_switched(make_policy, make_model, draws):
    fresh, learned = make_policy(), make_policy(learned=True)
    plain = TextPolicy(make_model(0), nets.characters_tokenizer(), settings=fresh.settings)
    base = texts(plain.generate(draws))
    assert texts(fresh.generate(draws)) == base
    tuned = texts(learned.generate(draws))
    assert tuned != base
    with learned.base():
        assert texts(learned.generate(draws)) == base
        with learned.tuned():
            assert texts(learned.generate(draws)) == tuned
        assert texts(learned.generate(draws)) == base
    assert texts(learned.generate(draws)) == tuned


def test_the_initial_adapter_follows_from_its_seed_alone(make_policy):
    torch.manual_seed(1)
    first = make_policy().trained.parameters()
    torch.manual_seed(2)
    second = make_policy().trained.parameters()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(parameter.dtype == torch.float32 for parameter in first.values())


def test_a_saved_adapter_is_read_by_peft(make_policy, make_model, tmp_path, draws):
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
    from safetensors.torch import load_file

    policy = make_policy(learned=True)
    policy.save(tmp_path)
    model = inject_adapter_in_model(LoraConfig.from_pretrained(str(tmp_path)), make_model(0))
    stripped = {
        k.removeprefix("base_model.model."): v for k, v in load_file(tmp_path / "adapter_model.safetensors").items()
    }
    assert not set_peft_model_state_dict(model, stripped).unexpected_keys
    ids = torch.tensor([policy.encode("12+34=")])
    with torch.no_grad():
        assert torch.equal(model.eval()(ids).logits, policy.model(ids).logits)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["lora_alpha"] == 8

    again = make_policy()
    again.load(tmp_path)
    attached = TextPolicy(make_model(0), nets.characters_tokenizer(), settings=policy.settings)
    attached.attach(tmp_path)
    assert texts(again.generate(draws)) == texts(attached.generate(draws)) == texts(policy.generate(draws))


@pytest.mark.parametrize("damage", ["missing", "broken", "other"])
def test_a_wrong_adapter_file_is_refused(make_policy, tmp_path, damage):
    policy = make_policy()
    policy.save(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    if damage == "missing":
        path.unlink()
    elif damage == "broken":
        path.write_bytes(b"no")
    else:
        from safetensors.torch import save_file

        save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors"):
        policy.load(tmp_path)


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"temperature": 0.0}, "temperature"), ({"top_p": 0.0}, "top_p"), ({"top_p": 1.1}, "top_p"),
     ({"max_new_tokens": 0}, "max_new_tokens"), ({"batch_size": 0}, "batch_size")],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        TextSettings(**settings)


def test_what_cannot_be_sampled_is_refused(make_policy, make_model, tmp_path):
    policy = make_policy(settings=TextSettings(max_new_tokens=90))
    with pytest.raises(ValueError, match="more than the model's 96"):
        policy.generate([Draw(Prompt("1234567="), 0, 0)])
    with pytest.raises(ValueError, match="makes no token"):
        policy.generate([Draw(Prompt(""), 0, 0)])
    with pytest.raises(ValueError, match="holds no adapter"):
        TextPolicy(make_model(0), nets.characters_tokenizer(), settings=policy.settings).attach(tmp_path)
    with pytest.raises(ValueError, match="adapter already"):
        policy.add_adapter(rank=2, alpha=2, seed=0)
    with pytest.raises(ValueError, match="no chat template"):
        TextPolicy(make_model(0), nets.characters_tokenizer(), settings=policy.settings, chat=True)
    with pytest.raises(ValueError, match="not finite"):
        choose(torch.tensor([[float("nan"), 1.0]]), torch.tensor([0.5]), TextSettings())
    with pytest.raises(ValueError, match="cannot be loaded as a causal language model"):
        TextPolicy.load_model(str(tmp_path), device="cpu", dtype=torch.float32)
