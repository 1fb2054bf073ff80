"""ClipTower against open_clip itself, and the published LAION heads against the numbers published with them."""

import hashlib
import json
import math
import os
import random
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import image_transform
from PIL import Image
from safetensors.torch import load_file, save_file

from raft_diffusion.core.loop import score
from raft_diffusion.pocket import WEIGHTS
from raft_diffusion.rewards.clip import ClipTower, diversity, load_head, mean_distances
from raft_diffusion.rewards.heads import HEADS, find_head

LEVELS = 2.01 / 255  # a level off after the first of two passes may be two after the second
V1 = [-2.4579, -0.1379, 1.8951, 3.5849, 5.0997, 6.4701, 7.7870, 9.0480, 10.2264, 11.3044]
V2 = [1.6555, 2.3593, 3.0698, 3.6725, 4.2380, 4.7010, 5.0731, 5.3654, 5.5767, 5.7468]
START, END = 54, 55  # of the small vocabulary
IDS = {"cat": [START, 53, END], "a dog": [START, 26, 3, 14, 32, END]}


def picture(seed: int, size: tuple[int, int]) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def tower(untouched_tower):
    return ClipTower.load(untouched_tower, device="cpu")


@pytest.fixture(scope="module")
def reference(untouched_tower):
    """open_clip's own loader on the same folder, with its own picture transform."""
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{untouched_tower}", require_pretrained=True)
    return model.eval(), transform


def test_scores_equal_those_computed_with_open_clip_by_hand(tower, reference, samples, untouched_tower):
    batch = samples(5)
    model, transform = reference
    ids = torch.tensor([(IDS[s.prompt.text] + 12 * [0])[:12] for s in batch])
    with torch.inference_mode():
        image = model.encode_image(torch.stack([transform(s.data.image) for s in batch]))
        text = model.encode_text(ids)
    image, text = image / image.norm(dim=1, keepdim=True), text / text.norm(dim=1, keepdim=True)
    head = load_file(untouched_tower / "aesthetic.safetensors")
    scores = tower(batch)
    assert list(scores) == list(tower.names) == ["text_image", "aesthetic"]
    torch.testing.assert_close(torch.tensor(scores["text_image"]), 100 * (image * text).sum(1), atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(
        torch.tensor(scores["aesthetic"]), (image @ head["weight"].T + head["bias"])[:, 0], atol=1e-4, rtol=1e-4
    )


def test_text_is_pooled_at_its_end_token_and_padding_does_not_matter(tower, reference):
    model, _ = reference
    with torch.inference_mode():
        short = model.transformer  # the causal text tower, run on the bare tokens without any padding
        x = model.token_embedding(torch.tensor([IDS["a dog"]])) + model.positional_embedding[: len(IDS["a dog"])]
        x = model.ln_final(short(x, attn_mask=model.attn_mask[: x.shape[1], : x.shape[1]]))[:, -1]
        expected = torch.nn.functional.normalize(x @ model.text_projection, dim=-1)
    torch.testing.assert_close(tower.embed_texts(["a dog"]), expected, atol=1e-5, rtol=1e-4)


def test_a_text_longer_than_the_context_still_ends_in_the_end_token(tower):
    long = " ".join(["cat"] * 30)
    torch.testing.assert_close(tower.embed_texts([long]), tower.embed_texts([f"{long} dog"]))
    assert not torch.allclose(tower.embed_texts([long]), tower.embed_texts(["cat"]))


def test_order_and_batch_size_do_not_matter(tower, untouched_tower, samples):
    batch = samples(9, "cat", "dog", "a cat")
    shuffled = random.Random(0).sample(batch, len(batch))
    expected = {s.id: values for s, *values in zip(batch, *tower(batch).values(), strict=True)}
    small = ClipTower.load(untouched_tower, device="cpu", batch_size=2)
    for s, *values in zip(shuffled, *small(shuffled).values(), strict=True):
        assert values == pytest.approx(expected[s.id], abs=1e-3)


def test_embeddings_are_of_unit_length_and_one_a_picture(tower, samples):
    images = tower.embed_images([s.data.image for s in samples(3)])
    texts = tower.embed_texts(["cat", "dog", "cat"])
    assert images.shape == texts.shape == (3, 24)
    torch.testing.assert_close(images.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(texts[0], texts[2])


def test_each_text_is_encoded_once(untouched_tower, samples, monkeypatch):
    tower = ClipTower.load(untouched_tower, device="cpu")
    encode, seen = open_clip.CLIP.encode_text, []
    monkeypatch.setattr(
        open_clip.CLIP, "encode_text", lambda self, ids, **kw: (seen.append(len(ids)), encode(self, ids, **kw))[1]
    )
    tower(samples(6, "cat", "dog"))
    tower(samples(6, "cat", "dog"))
    assert seen == [1, 1]  # alone: with which others it came would tell in the last bits


def test_a_held_out_tower_puts_its_prefix_before_every_name(untouched_tower, tower, samples):
    held_out = ClipTower.load(untouched_tower, device="cpu", prefix="held_out.")
    (scored, *_) = score(samples(2), [tower, held_out])
    assert set(scored.scores) == {"text_image", "aesthetic", "held_out.text_image", "held_out.aesthetic"}
    assert held_out.names == ("held_out.text_image", "held_out.aesthetic")
    assert scored.scores["held_out.text_image"] == pytest.approx(scored.scores["text_image"])


@pytest.mark.parametrize("size", [(64, 64), (32, 32), (96, 96), (96, 64), (33, 100), (512, 384)])
def test_preprocessing_equals_open_clip(tower, size):
    image = picture(0, size)
    transform = image_transform(64, is_train=False, mean=(0.5, 0.4, 0.3), std=(0.5, 0.6, 0.7))
    difference = (tower.preprocess([image])[0] - transform(image)).abs()
    assert difference.max() < LEVELS / 0.5


def photograph(name: str, size: tuple[int, int]) -> Image.Image:
    """One of scikit-image's, (width, height) pixels."""
    found = find_spec("skimage")
    if found is None or not found.submodule_search_locations:
        pytest.skip("scikit-image, whose photographs are compared on, is not installed")
    return Image.open(Path(found.submodule_search_locations[0]) / "data" / name).resize(size, Image.Resampling.LANCZOS)


def plain_tower(size: int, resize_mode: str = "shortest") -> ClipTower:
    """A tower that only prepares pictures, with OpenAI's mean and deviation."""
    model = torch.nn.Module()
    model.visual = SimpleNamespace(image_size=size)
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    return ClipTower(model, torch.tensor, mean=mean, std=std, heads={}, resize_mode=resize_mode)


@pytest.mark.parametrize("resize_mode", ["shortest", "longest"])
@pytest.mark.parametrize("size", [(256, 256), (512, 512), (768, 512), (512, 768)])
@pytest.mark.parametrize(
    "name", ["astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg", "retina.jpg", "camera.png", "page.png"]
)
def test_photographs_are_prepared_as_open_clip_prepares_them(name, size, resize_mode):
    image = photograph(name, size)
    difference = (
        plain_tower(224, resize_mode).preprocess([image])[0]
        - image_transform(224, is_train=False, resize_mode=resize_mode)(image)
    ).abs()
    assert difference.mean() < 0.01
    assert difference.max() < LEVELS / min(open_clip.OPENAI_DATASET_STD)


@pytest.mark.parametrize("resize_mode", ["shortest", "longest"])
@pytest.mark.parametrize("size", [(256, 256), (512, 512), (768, 512), (250, 500), (448, 224)])
def test_hard_edges_and_noise_are_prepared_as_open_clip_prepares_them(size, resize_mode):
    """Black beside white overshoots in both directions: what is not cut between the passes comes out elsewhere."""
    random_ = np.random.default_rng(0)
    blocks = np.kron(random_.integers(0, 2, (8, 8, 3)) * 255, np.ones((100, 100, 1))).astype(np.uint8)
    image = Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST)
    noise = Image.fromarray(random_.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    transform = image_transform(224, is_train=False, resize_mode=resize_mode)
    ours = plain_tower(224, resize_mode).preprocess([image, noise])
    difference = (ours - torch.stack([transform(image), transform(noise)])).abs()
    assert difference.mean() < 0.01
    assert difference.max() < LEVELS / min(open_clip.OPENAI_DATASET_STD)


@pytest.mark.parametrize("name", ["clip", "held_out"])
@pytest.mark.parametrize("size", [(64, 64), (256, 256), (512, 384)])
def test_scores_of_the_carried_towers_agree_with_open_clip(name, size, samples):
    folder, batch = WEIGHTS / name, samples(4, "red circle", "blue square", size=size)
    tower = ClipTower.load(folder)
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}", require_pretrained=True)
    with torch.inference_mode():
        image = model.eval().encode_image(torch.stack([transform(s.data.image) for s in batch]), normalize=True)
    expected = 100 * (image * tower.embed_texts([s.prompt.text for s in batch])).sum(1)
    assert tower(batch)["text_image"] == pytest.approx(expected.tolist(), abs=0.2)


def test_pictures_of_mixed_sizes_keep_their_order():
    tower, images = plain_tower(64), [picture(k, size) for k, size in enumerate([(64, 64), (96, 64), (64, 64)])]
    assert torch.equal(tower.preprocess(images), torch.cat([tower.preprocess([image]) for image in images]))


def test_pictures_of_mixed_sizes_share_a_batch(tower, samples):
    images = [samples(1, size=size)[0].data.image for size in ((64, 64), (96, 64), (64, 64))]
    alone = torch.cat([tower.embed_images([image]) for image in images])
    torch.testing.assert_close(tower.embed_images(images), alone, atol=1e-5, rtol=1e-4)


def test_a_nan_score_is_caught_with_its_sample(tower_folder, samples):
    path = tower_folder / "aesthetic.safetensors"
    save_file({**load_file(path), "bias": torch.tensor([math.nan])}, path)
    batch = samples(2)
    with pytest.raises(ValueError, match=f"'aesthetic' scored sample {batch[0].id} .* as nan"):
        score(batch, [ClipTower.load(tower_folder, device="cpu")])


def test_one_pass_over_the_pictures_gives_every_score(untouched_tower, samples, tmp_path, monkeypatch):
    generator = torch.Generator().manual_seed(1)
    heads = {name: torch.randn(1, 24, generator=generator) for name in ("aesthetic_v1", "aesthetic_v2")}
    for name, weight in heads.items():
        save_file({"weight": weight, "bias": torch.tensor([5.0])}, tmp_path / f"{name}.safetensors")
    tower = ClipTower.load(untouched_tower, aesthetic={name: tmp_path / f"{name}.safetensors" for name in heads})
    encode, passes = open_clip.CLIP.encode_image, []
    monkeypatch.setattr(
        open_clip.CLIP, "encode_image", lambda self, x, **kw: (passes.append(len(x)), encode(self, x, **kw))[1]
    )
    batch = samples(3)
    scores = tower(batch)
    assert passes == [3]
    assert list(scores) == list(tower.names) == ["text_image", "aesthetic", "aesthetic_v1", "aesthetic_v2"]
    embeddings = tower.embed_images([s.data.image for s in batch])
    for name, weight in heads.items():
        assert scores[name] == pytest.approx(((embeddings @ weight.T)[:, 0] + 5).tolist(), abs=1e-4)


def test_a_tower_in_half_precision_scores_nearly_the_same(tower, untouched_tower, samples):
    half = ClipTower.load(untouched_tower, device="cpu", dtype=torch.bfloat16)
    assert half.embed_images([s.data.image for s in samples(2)]).dtype == torch.float32
    for name, values in half(samples(4)).items():
        assert values == pytest.approx(tower(samples(4))[name], abs=3)


def test_without_a_head_there_is_no_aesthetic_score(tower_folder, samples):
    (tower_folder / "aesthetic.safetensors").unlink()
    assert list(ClipTower.load(tower_folder, device="cpu")(samples(1))) == ["text_image"]


@pytest.mark.parametrize("file", ["open_clip_model.safetensors", "open_clip_config.json", "aesthetic.safetensors"])
def test_a_truncated_file_is_one_clear_error(tower_folder, file):
    path = tower_folder / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=str(tower_folder)) as caught:
        ClipTower.load(tower_folder, device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["open_clip_model.safetensors", "open_clip_config.json"])
def test_a_missing_file_is_one_clear_error(tower_folder, file):
    (tower_folder / file).unlink()
    with pytest.raises(ValueError, match=str(tower_folder)):
        ClipTower.load(tower_folder, device="cpu")


def test_weights_of_another_model_are_refused(tower_folder):
    path = tower_folder / "open_clip_model.safetensors"
    weights = load_file(path)
    del weights["logit_scale"]
    save_file(weights, path)
    with pytest.raises(ValueError, match="logit_scale"):
        ClipTower.load(tower_folder, device="cpu")


def test_a_tokenizer_whose_end_is_not_the_highest_id_is_refused(tower_folder):
    path = tower_folder / "tokenizer/vocab.json"
    path.write_text(path.read_text().replace('"<|endoftext|>": 55', '"<|endoftext|>": 0').replace('"a": 0', '"a": 55'))
    with pytest.raises(ValueError, match="tokenizer"):
        ClipTower.load(tower_folder, device="cpu")


def test_a_tokenizer_without_its_files_is_refused(tower_folder):
    for path in (tower_folder / "tokenizer").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="2 tokens, the text tower 56"):
        ClipTower.load(tower_folder, device="cpu")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("resize_mode", "squash", "squash.*'shortest' and 'longest' are"),
        ("interpolation", "bilinear", "bilinear.*'bicubic' is"),
        ("fill_color", 255, "fill_color 255; only 0 is"),
    ],
)
def test_another_preprocessing_is_refused_not_ignored(tower_folder, key, value, message):
    path = tower_folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["preprocess_cfg"][key] = value
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        ClipTower.load(tower_folder, device="cpu")


def test_a_tower_that_wants_whole_pictures_gets_them_on_black(tower_folder):
    path = tower_folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"preprocess_cfg": {**config["preprocess_cfg"], "resize_mode": "longest"}}))
    image = picture(0, (100, 50))
    expected = image_transform(64, is_train=False, mean=(0.5, 0.4, 0.3), std=(0.5, 0.6, 0.7), resize_mode="longest")
    ours = ClipTower.load(tower_folder, device="cpu").preprocess([image])[0]
    assert (ours - expected(image)).abs().max() < LEVELS / 0.5


def test_a_configuration_without_a_mean_is_one_clear_error(tower_folder):
    path = tower_folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    del config["preprocess_cfg"]["mean"]
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="mean"):
        ClipTower.load(tower_folder, device="cpu")


def test_an_unknown_source_says_what_is_allowed():
    with pytest.raises(ValueError, match="folder"):
        ClipTower.load("no-such-tower", device="cpu")


@pytest.mark.parametrize(
    ("source", "right"),
    [
        ("ViT-L-14:openai", "ViT-L-14-quickgelu:openai"),
        ("ViT-B-16:dfn2b", "ViT-B-16-quickgelu:dfn2b"),
    ],
)
def test_weights_with_the_wrong_gelu_are_refused_before_any_download(source, right):
    with pytest.raises(ValueError, match=f"use {right}"):
        ClipTower.load(source, device="cpu")


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("ViT-L-14-quickgelu:opnai", "no weights of ViT-L-14-quickgelu called 'opnai': did you mean openai"),
        ("ViT-L/14:openai", "no model called 'ViT-L/14': did you mean ViT-L-14"),
        ("ViT-L-41:openai", "no model called 'ViT-L-41': did you mean .*ViT-L-14"),
    ],
)
def test_unknown_names_of_open_clip_get_the_nearest(source, sentence):
    with pytest.raises(ValueError, match=sentence):
        ClipTower.load(source, device="cpu")


def test_weights_of_open_clip_may_be_a_file(tmp_path, monkeypatch):
    def create_model(name, pretrained, **_):
        raise RuntimeError(f"{Path(pretrained).name} is broken")

    monkeypatch.setattr(open_clip, "create_model", create_model)
    (tmp_path / "weights.pt").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"open_clip cannot load ViT-B-32:.*: weights\.pt is broken"):
        ClipTower.load(f"ViT-B-32:{tmp_path / 'weights.pt'}", device="cpu")


def test_an_open_clip_tag_must_bring_its_weights(untouched_tower, samples, monkeypatch):
    asked = {}

    def create_model(name, pretrained, *, require_pretrained):
        asked.update(name=name, pretrained=pretrained, require_pretrained=require_pretrained)
        return create(f"local-dir:{untouched_tower}")

    create = open_clip.create_model
    monkeypatch.setattr(open_clip, "create_model", create_model)
    monkeypatch.setattr(
        open_clip, "get_tokenizer", lambda name: lambda texts: torch.tensor([[START, 53, END] + 9 * [0]])
    )
    tower = ClipTower.load("ViT-L-14-quickgelu:openai", device="cpu")
    assert asked == {"name": "ViT-L-14-quickgelu", "pretrained": "openai", "require_pretrained": True}
    expected = ClipTower.load(untouched_tower, device="cpu")(samples(1, "cat"))["text_image"]
    assert tower(samples(1, "cat"))["text_image"] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("file", "ratings"),
    [("sa_0_4_vit_l_14_linear.pth", V1), ("sac+logos+ava1-l14-linearMSE.pth", V2)],
)
def test_laion_heads_give_the_known_ratings(file, ratings):
    if "RAFT_LAION_DIR" not in os.environ:
        pytest.skip("RAFT_LAION_DIR, a folder with LAION's heads and embeddings, is not set")
    folder = Path(os.environ["RAFT_LAION_DIR"])
    embeddings = torch.cat(
        [torch.from_numpy(np.load(folder / f"vit_l_14_embeddings/rating{n}.npy")) for n in range(10)]
    )
    head = load_head(folder / file)
    with torch.inference_mode():
        scores = head(torch.nn.functional.normalize(embeddings, dim=-1)).flatten()
    assert scores.tolist() == pytest.approx(ratings, abs=1e-3)


def test_the_head_for_the_smaller_tower_ranks_its_ratings():
    if "RAFT_LAION_DIR" not in os.environ:
        pytest.skip("RAFT_LAION_DIR, a folder with LAION's heads and embeddings, is not set")
    folder = Path(os.environ["RAFT_LAION_DIR"])
    head = load_head(find_head("aesthetic_v1", tower="any", source=str(folder / "sa_0_4_vit_b_32_linear.pth")))
    embeddings = [np.load(folder / f"vit_b_32_embeddings/rating{n}.npy") for n in range(10)]
    with torch.inference_mode():
        scores = head(torch.nn.functional.normalize(torch.from_numpy(np.concatenate(embeddings)), dim=-1)).flatten()
    assert scores.tolist() == sorted(scores.tolist())


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.path.name)
def test_the_pinned_hashes_are_those_of_the_real_files(head):
    if "RAFT_LAION_DIR" not in os.environ:
        pytest.skip("RAFT_LAION_DIR, a folder with LAION's heads and embeddings, is not set")
    content = (Path(os.environ["RAFT_LAION_DIR"]) / head.path.name).read_bytes()
    assert hashlib.sha256(content).hexdigest() == head.sha256


def test_a_head_that_holds_more_than_tensors_is_not_unpickled(tmp_path):
    torch.save({"weight": torch.ones(1, 24), "bias": SimpleNamespace()}, tmp_path / "head.pth")
    with pytest.raises(ValueError, match=r"head\.pth cannot be loaded: it is broken or holds more than tensors$"):
        load_head(tmp_path / "head.pth")


def test_a_head_of_another_form_is_refused(tmp_path):
    save_file({"scale": torch.ones(3)}, tmp_path / "head.safetensors")
    with pytest.raises(ValueError, match=r"head\.safetensors"):
        load_head(tmp_path / "head.safetensors")


def test_diversity_equals_the_mean_over_all_pairs():
    embeddings = torch.nn.functional.normalize(torch.randn(7, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    pairs = [1 - float(embeddings[i] @ embeddings[j]) for i in range(7) for j in range(i)]
    assert diversity(embeddings) == pytest.approx(sum(pairs) / 21, abs=1e-6)


def test_diversity_of_one_picture_repeated_is_zero_and_of_opposites_two():
    one = torch.nn.functional.normalize(torch.ones(1, 8), dim=1)
    assert diversity(one.repeat(4, 1)) == pytest.approx(0, abs=1e-6)
    assert diversity(torch.cat([one, -one])) == pytest.approx(2, abs=1e-6)


def test_mean_distances_are_those_of_all_pairs():
    embeddings = torch.nn.functional.normalize(torch.randn(6, 5, generator=torch.Generator().manual_seed(1)), dim=1)
    expected = [sum(1 - float(embeddings[i] @ embeddings[j]) for j in range(6) if j != i) / 5 for i in range(6)]
    assert mean_distances(embeddings) == pytest.approx(expected, abs=1e-6)
    assert sum(mean_distances(embeddings)) / 6 == pytest.approx(diversity(embeddings), abs=1e-6)
    with pytest.raises(ValueError, match="at least 2 embeddings, not 1"):
        mean_distances(embeddings[:1])


def test_diversity_needs_a_pair():
    with pytest.raises(ValueError, match="at least 2"):
        diversity(torch.ones(1, 4))


def test_pictures_that_do_not_fit_at_once_are_scored_in_smaller_batches(tower, untouched_tower, samples, monkeypatch):
    small = ClipTower.load(untouched_tower, device="cpu", dtype=torch.float32)
    encode, sizes = small._model.encode_image, []

    def limited(pixels):
        sizes.append(len(pixels))
        if len(pixels) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return encode(pixels)

    monkeypatch.setattr(small._model, "encode_image", limited)
    batch = samples(5)
    with pytest.warns(UserWarning, match="no memory for scoring 5 pictures at once"):
        found = small(batch)
    assert sizes == [5, 2, 2, 1]
    for name, values in tower(batch).items():
        assert found[name] == pytest.approx(values, abs=1e-4)
