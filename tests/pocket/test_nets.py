import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

from raft_diffusion.pocket import nets, recipe, world

TEXTS = ["photo cat", "monet style sunflower", "pixel art automobile", "bad neon landscape", ""]


@pytest.fixture(scope="module")
def vocabulary() -> dict[str, int]:
    return nets.build_vocabulary(nets.world_words())[0]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> CLIPTokenizer:
    """Saved and loaded again, as the package carries it."""
    folder = tmp_path_factory.mktemp("tokenizer")
    nets.save_tokenizer(folder, *nets.build_vocabulary(nets.world_words()))
    return CLIPTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def clip(vocabulary):
    torch.manual_seed(0)
    return nets.make_clip(nets.clip_config(len(vocabulary), width=10)).eval()


def test_the_same_words_give_the_same_ids_and_merges_in_any_order():
    """Derived by hand: "l o" twice; then "lo w</w>" before "lo t</w>"? Both once, so the lower id, t, is first."""
    vocabulary, merges = nets.build_vocabulary(["low", "lot"])
    assert merges == ["l o", "lo t</w>", "lo w</w>"]
    assert [vocabulary[piece] for piece in ("lo", "lot</w>", "low</w>", nets.START, nets.END)] == [*range(512, 517)]
    words = nets.world_words()
    assert nets.build_vocabulary(words) == nets.build_vocabulary(words[::-1])


def test_every_word_of_the_world_is_one_token(tokenizer, vocabulary):
    words = {word for text in world.CAPTIONS for word in text.split()}
    assert {*words, "bad", "landscape"} <= set(nets.world_words())
    for word in nets.world_words():
        assert tokenizer(word).input_ids == [vocabulary[nets.START], vocabulary[word + "</w>"], vocabulary[nets.END]]


def test_the_end_token_is_the_highest_id_and_unknown_words_fall_into_letters(tokenizer, vocabulary):
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))
    assert tokenizer.get_vocab() == vocabulary and tokenizer.model_max_length == nets.CONTEXT
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == len(vocabulary) - 1 == vocabulary[nets.END]
    assert tokenizer.bos_token_id == vocabulary[nets.START]
    assert len(tokenizer("zyzzyva").input_ids) > 3
    assert tokenizer.decode(tokenizer("Zebra, über!").input_ids, skip_special_tokens=True).strip() == "zebra , über !"


def test_the_recipe_trains_on_the_ids_that_the_tokenizer_gives(tokenizer):
    texts = [*recipe.clip_texts(), ""]
    assert len(set(texts)) == len(texts)
    for text, ids in zip(texts, recipe.token_ids(texts).tolist(), strict=True):
        given = tokenizer(text).input_ids
        assert ids == given + [0] * (nets.CONTEXT - len(given)), text


def test_the_text_encoder_has_the_features_of_the_open_clip_tower(clip, vocabulary):
    encoder = nets.make_text_encoder(clip.state_dict(), len(vocabulary))
    ids = recipe.token_ids(TEXTS)
    with torch.inference_mode():
        reference = clip.encode_text(ids)
        states = encoder(ids).last_hidden_state
        features = states[torch.arange(len(ids)), ids.argmax(1)] @ clip.text_projection
    assert reference.std() > 0.1
    torch.testing.assert_close(features, reference, atol=1e-5, rtol=0)


def test_the_saved_text_encoder_has_the_published_names(clip, vocabulary, tmp_path):
    linear = [f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")] + ["mlp.fc1", "mlp.fc2"]
    layer = [*linear, "layer_norm1", "layer_norm2"]
    modules = [f"encoder.layers.{number}.{name}" for number in range(nets.LAYERS) for name in layer]
    published = {f"text_model.{name}.{kind}" for name in (*modules, "final_layer_norm") for kind in ("weight", "bias")}
    published |= {f"text_model.embeddings.{kind}_embedding.weight" for kind in ("token", "position")}

    encoder = nets.make_text_encoder(clip.state_dict(), len(vocabulary))
    encoder.save_pretrained(tmp_path)
    save_file(nets.text_state(clip.state_dict()), tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert set(load_file(tmp_path / "model.safetensors")) == published
    loaded = CLIPTextModel.from_pretrained(tmp_path)
    ids = recipe.token_ids(TEXTS)
    with torch.inference_mode():
        assert torch.equal(loaded(ids).last_hidden_state, encoder(ids).last_hidden_state)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["CLIPTextModel"] and config["eos_token_id"] == len(vocabulary) - 1
