"""PickScore and HPSv2.1 against scores computed by hand, in their published shapes made small and at full size."""

import hashlib
import json
from dataclasses import replace

import open_clip
import pytest
import torch
from open_clip.transform import image_transform
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel

from raft_diffusion.core.loop import score
from raft_diffusion.rewards import preference
from raft_diffusion.rewards.preference import PUBLISHED, load_preference, pickscore_config

SIZE = 28
VIT_H_14 = 986_109_441  # weights, as open_clip's table of models rounds to 986.11 M
HPS_SMALL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": SIZE, "layers": 2, "width": 32, "head_width": 16, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}


def small_pickscore() -> CLIPConfig:
    """The published configuration with fewer and narrower layers."""
    values = pickscore_config().to_dict()
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "image_size": SIZE}
    text = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    for part, changes in (("vision_config", vision), ("text_config", text)):
        values[part] |= {**changes, "num_hidden_layers": 2, "projection_dim": 16}
    return CLIPConfig.from_dict(values | {"projection_dim": 16})


@pytest.fixture(scope="module")
def pickscore(tmp_path_factory):
    """Folder and model: random weights as transformers saves them, with a tensor that only old files have."""
    folder = tmp_path_factory.mktemp("pickscore")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIPModel(small_pickscore()).eval()
    model.logit_scale.data.fill_(4.5)
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(state | {"text_model.embeddings.position_ids": torch.arange(77)[None]}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(model.config.to_dict()))
    return folder, model


@pytest.fixture(scope="module")
def hps(tmp_path_factory):
    """Folder and model: random weights in half precision inside a .pt, as the published file has them."""
    folder = tmp_path_factory.mktemp("hps")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.CLIP(**HPS_SMALL).eval()
    state = {key: value.half() for key, value in model.state_dict().items()}
    model.load_state_dict(state)
    torch.save({"state_dict": state}, folder / "HPS_v2.1_compressed.pt")
    return folder, model


@pytest.fixture(autouse=True)
def small_hps(tmp_path_factory, monkeypatch):
    """What open_clip builds for HPSv2.1 here; the tokenizer is that of ViT-H-14."""
    folder = tmp_path_factory.mktemp("configs")
    (folder / "ViT-H-14-small.json").write_text(json.dumps(HPS_SMALL))
    open_clip.add_model_config(folder)
    monkeypatch.setattr(preference, "MODEL", "ViT-H-14-small")


def by_hand(samples, image_features, text_features, resize_mode):
    """The cosines of pictures and prompts, with open_clip's own transform and tokenizer."""
    transform = image_transform(SIZE, is_train=False, resize_mode=resize_mode)
    pixels = torch.stack([transform(s.data.image) for s in samples])
    ids = open_clip.get_tokenizer("ViT-H-14")([s.prompt.text for s in samples])
    with torch.inference_mode():
        image, text = image_features(pixels), text_features(ids)
    return (image * text).sum(1) / (image.norm(dim=1) * text.norm(dim=1))


@pytest.mark.parametrize("size", [(28, 28), (64, 48)])
def test_pickscore_is_the_cosine_times_its_own_scale(pickscore, samples, size):
    folder, model = pickscore
    batch = samples(5, "a red cat", "A dog, at night!", size=size)
    expected = 90.0171 * by_hand(  # e^4.5
        batch,
        lambda pixels: model(pixel_values=pixels, input_ids=torch.zeros(1, 2, dtype=torch.long)).image_embeds,
        lambda ids: model(pixel_values=torch.zeros(1, 3, SIZE, SIZE), input_ids=ids).text_embeds,
        "shortest",
    )
    reward = load_preference("pickscore", source=str(folder))
    scores = reward(batch)
    assert list(scores) == ["pickscore"]
    assert scores["pickscore"] == pytest.approx(expected.tolist(), abs=0.02)


@pytest.mark.parametrize("size", [(28, 28), (64, 48), (40, 80)])
def test_hpsv21_is_a_hundred_times_the_cosine_of_the_whole_picture(hps, samples, size):
    folder, model = hps
    batch = samples(5, "a red cat", "A dog, at night!", size=size)
    expected = 100 * by_hand(batch, model.encode_image, model.encode_text, "longest")
    reward = load_preference("hpsv2.1", source=str(folder / "HPS_v2.1_compressed.pt"))
    scores = reward(batch)
    assert list(scores) == ["hpsv2.1"]
    assert scores["hpsv2.1"] == pytest.approx(expected.tolist(), abs=0.02)


def test_both_judge_beside_what_ranks(pickscore, hps, samples):
    judges = [
        load_preference("pickscore", source=str(pickscore[0]), prefix="held_out."),
        load_preference("hpsv2.1", source=str(hps[0]), prefix="held_out."),
    ]
    ranking = load_preference("pickscore", source=str(pickscore[0]))
    (first, *_) = score(samples(2), [ranking, *judges])
    assert set(first.scores) == {"pickscore", "held_out.pickscore", "held_out.hpsv2.1"}
    assert first.scores["held_out.pickscore"] == first.scores["pickscore"]


def test_the_published_shapes_are_what_is_built():
    with torch.device("meta"):
        pick = CLIPModel(pickscore_config())
        hps = open_clip.CLIP(**open_clip.get_model_config("ViT-H-14"))
    assert sum(p.numel() for p in pick.parameters()) == sum(p.numel() for p in hps.parameters()) == VIT_H_14
    assert (len(pick.vision_model.encoder.layers), len(pick.text_model.encoder.layers)) == (32, 24)
    published = {
        "logit_scale",
        "visual_projection.weight",
        "text_projection.weight",
        "text_model.embeddings.token_embedding.weight",
        "text_model.encoder.layers.23.self_attn.q_proj.bias",
        "text_model.final_layer_norm.weight",
        "vision_model.embeddings.class_embedding",
        "vision_model.pre_layrnorm.weight",
        "vision_model.encoder.layers.31.mlp.fc1.weight",
        "vision_model.post_layernorm.bias",
    }
    assert published <= set(pick.state_dict())
    assert pick.visual_projection.weight.shape == (1024, 1280)
    assert pick.text_projection.weight.shape == (1024, 1024)
    assert pick.vision_model.embeddings.position_embedding.weight.shape == (257, 1280)
    assert pick.text_model.embeddings.token_embedding.weight.shape == (49408, 1024)
    assert pick.config.vision_config.hidden_act == pick.config.text_config.hidden_act == "gelu"
    assert (len(hps.visual.transformer.resblocks), len(hps.transformer.resblocks)) == (32, 24)
    assert hps.visual.proj.shape == (1280, 1024)


def test_weights_without_a_configuration_are_of_the_published_shape(pickscore, tmp_path, monkeypatch):
    (tmp_path / "mine.safetensors").write_bytes((pickscore[0] / "model.safetensors").read_bytes())
    monkeypatch.setattr(preference, "pickscore_config", small_pickscore)
    assert load_preference("pickscore", source=str(tmp_path / "mine.safetensors")).names == ("pickscore",)


def test_hpsv21_may_be_safetensors(hps, tmp_path, samples):
    state = torch.load(hps[0] / "HPS_v2.1_compressed.pt", weights_only=True)["state_dict"]
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "HPS_v2.1_compressed.safetensors")
    expected = load_preference("hpsv2.1", source=str(hps[0]))(samples(2))
    assert load_preference("hpsv2.1", source=str(tmp_path))(samples(2)) == expected


def test_an_unknown_model_is_refused():
    with pytest.raises(ValueError, match=r"unknown preference model 'pick': it must be one of pickscore, hpsv2\.1"):
        load_preference("pick")


@pytest.mark.parametrize(("name", "file"), [("pickscore", "model.safetensors"), ("hpsv2.1", "HPS_v2.1_compressed.pt")])
def test_a_source_without_weights_is_one_sentence(name, file, tmp_path):
    for source in (tmp_path, tmp_path / "none.safetensors"):
        with pytest.raises(
            ValueError, match=rf"^rewards\.sources\.{name}: {source} is neither .* folder with {file}; give"
        ):
            load_preference(name, source=str(source))


def test_pickles_of_pickscore_are_refused(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"it must be safetensors, such as the published model\.safetensors$"):
        load_preference("pickscore", source=str(tmp_path / "pytorch_model.bin"))


def test_a_pickle_that_holds_more_than_tensors_is_not_unpickled(tmp_path):
    torch.save({"state_dict": {"logit_scale": replace(PUBLISHED["hpsv2.1"])}}, tmp_path / "HPS_v2.1_compressed.pt")
    with pytest.raises(ValueError, match=r"compressed\.pt cannot be loaded: it is broken or holds more than tensors$"):
        load_preference("hpsv2.1", source=str(tmp_path))


@pytest.mark.parametrize("change", ["missing", "reshaped"])
def test_weights_that_do_not_fit_are_refused(pickscore, tmp_path, change):
    state = load_file(pickscore[0] / "model.safetensors")
    weight = state.pop("visual_projection.weight")
    if change == "reshaped":
        state["visual_projection.weight"] = weight[:8].contiguous()
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((pickscore[0] / "config.json").read_bytes())
    with pytest.raises(ValueError, match=r"^pickscore: .*visual_projection\.weight") as caught:
        load_preference("pickscore", source=str(tmp_path))
    assert "\n" not in str(caught.value)


def test_weights_of_another_model_are_refused(pickscore):
    with pytest.raises(ValueError, match=r"^hpsv2\.1: .*model\.safetensors cannot be loaded: ") as caught:
        load_preference("hpsv2.1", source=str(pickscore[0] / "model.safetensors"))
    assert "\n" not in str(caught.value)


def test_the_published_file_is_asked_for_at_its_commit_and_checked(pickscore, monkeypatch):
    path = pickscore[0] / "model.safetensors"
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.hf_hub_download",
        lambda repository, file, revision: (asked.append((repository, file, revision)), str(path))[1],
    )
    with pytest.raises(ValueError, match=r"is not the published file \(sha256 .*, not ef31ef6fc5ff\.\.\.\): delete it"):
        load_preference("pickscore")
    assert asked == [("yuvalkirstain/PickScore_v1", "model.safetensors", "a4e4367c6dfa7288a00c550414478f865b875800")]
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(PUBLISHED, "pickscore", replace(PUBLISHED["pickscore"], sha256=sha256))
    assert load_preference("pickscore").names == ("pickscore",)


@pytest.mark.parametrize(("value", "why"), [("1", "HF_HUB_OFFLINE forbids"), ("0", "no network today")])
def test_a_download_that_fails_is_one_sentence(monkeypatch, value, why):
    def fail(*args, **kwargs):
        raise OSError("no network\ntoday")

    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    sentence = (
        rf"^hpsv2.1: xswu/HPSv2/HPS_v2.1_compressed.pt cannot be had \({why}.*\): try again, or download it yourself"
    )
    with pytest.raises(ValueError, match=sentence):
        load_preference("hpsv2.1")
