import threading
import weakref

import pytest
import torch
from PIL import Image

from raft_diffusion.core.records import Draw, Prompt, Sample
from raft_diffusion.diffusion import pictures
from raft_diffusion.diffusion.pictures import Picture, PictureCodec, as_png, before_after


@pytest.fixture
def samples():
    prompt = Prompt("cat")
    batch = torch.randn(3, 4, 2, 3, generator=torch.Generator().manual_seed(0))
    images = [Image.new("RGB", (12, 8), (k, 100, 200)) for k in range(3)]
    return [Sample(Draw(prompt, k, k), Picture(batch[k], images[k])) for k in range(3)]


def rows(samples):
    return [{"id": sample.id, "file_name": f"{sample.id}.png"} for sample in samples]


def test_kept_samples_come_back_exactly_and_in_the_order_asked(tmp_path, samples):
    assert PictureCodec().write_samples(tmp_path, samples, keep=True) == [f"{sample.id}.png" for sample in samples]
    asked = samples[::-1][:2]
    for picture, sample in zip(PictureCodec().read_samples(tmp_path, rows(asked)), asked, strict=True):
        assert torch.equal(picture.latent, sample.data.latent) and picture.latent.dtype == torch.float32
        assert picture.image.tobytes() == sample.data.image.tobytes()


def test_candidates_that_are_not_kept_leave_only_pictures(tmp_path, samples):
    names = PictureCodec().write_samples(tmp_path, samples, keep=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    with pytest.raises(ValueError, match=r"latents.safetensors is missing"):
        PictureCodec().read_samples(tmp_path, rows(samples))


def test_a_lost_picture_is_named(tmp_path, samples):
    PictureCodec().write_samples(tmp_path, samples, keep=True)
    (tmp_path / f"{samples[1].id}.png").unlink()
    with pytest.raises(ValueError, match=f"sample {samples[1].id} of"):
        PictureCodec().read_samples(tmp_path, rows(samples))


def test_no_winners_need_no_files(tmp_path):
    assert PictureCodec().write_samples(tmp_path, [], keep=True) == []
    assert PictureCodec().read_samples(tmp_path, []) == []


def test_what_a_picture_says_of_itself_is_kept(tmp_path, samples):
    samples[0].data.image.info["parameters"] = "ein Käse, 猫\nSteps: 4"
    samples[1].data.image.info["parameters"] = "bytes that were no UTF-8: \udcff"
    PictureCodec().write_samples(tmp_path, samples, keep=True)
    with Image.open(tmp_path / f"{samples[0].id}.png") as image:
        assert image.text == {"parameters": "ein Käse, 猫\nSteps: 4"}
    found = PictureCodec().read_samples(tmp_path, rows(samples))
    assert found[0].image.info["parameters"] == "ein Käse, 猫\nSteps: 4"
    assert found[1].image.info["parameters"] == "bytes that were no UTF-8: ?"
    assert "parameters" not in found[2].image.info


def test_a_picture_is_made_once_beside_other_work_and_forgotten_with_it(tmp_path, samples, monkeypatch):
    made, go = [], threading.Event()

    def slow(image):
        assert go.wait(60)
        made.append((image, threading.current_thread()))
        return as_png(image)

    monkeypatch.setattr(pictures, "as_png", slow)
    codec = PictureCodec()
    codec.begin(samples)
    assert not made
    go.set()
    for name, some in (("candidates", samples), ("winners", samples[1:])):
        (tmp_path / name).mkdir()
        codec.write_samples(tmp_path / name, some, keep=True)
    assert sorted(id(image) for image, _ in made) == sorted(id(sample.data.image) for sample in samples)
    assert threading.current_thread() not in [thread for _, thread in made]
    for sample in samples:
        content = (tmp_path / "candidates" / f"{sample.id}.png").read_bytes()
        assert content == as_png(sample.data.image)
        assert sample is samples[0] or content == (tmp_path / "winners" / f"{sample.id}.png").read_bytes()
    kept = weakref.ref(samples[0].data)
    made.clear()
    del samples[0], sample
    assert kept() is None


def test_a_picture_that_cannot_be_made_stops_the_writing(tmp_path, samples, monkeypatch):
    def refuse(image):
        raise MemoryError("no room for a picture")

    monkeypatch.setattr(pictures, "as_png", refuse)
    codec = PictureCodec()
    codec.begin(samples)
    with pytest.raises(MemoryError, match="no room"):
        codec.write_samples(tmp_path, samples, keep=True)


def test_a_packed_batch_comes_back_bit_by_bit(samples):
    words = ["ein Käse, 猫\nSteps: 4", "bytes that were no UTF-8: \udcff", None]
    for sample, text in zip(samples[:2], words, strict=False):
        sample.data.image.info["parameters"] = text
    back = PictureCodec().unpack(PictureCodec().pack(samples))
    for picture, sample, text in zip(back, samples, words, strict=True):
        assert torch.equal(picture.latent, sample.data.latent) and picture.latent.dtype == torch.float32
        assert (picture.image.mode, picture.image.size) == ("RGB", (12, 8))
        assert picture.image.tobytes() == sample.data.image.tobytes()
        assert picture.image.info.get("parameters") == text


def test_before_and_after_lie_under_each_other(tmp_path):
    for name, colour in {"a": "red", "b": "lime"}.items():
        Image.new("RGB", (64, 64), colour).save(tmp_path / f"{name}.png")
    before_after(tmp_path, [{"before": "a.png", "after": "b.png"}] * 3, tmp_path / "sheet.png", columns=2)
    with Image.open(tmp_path / "sheet.png") as sheet:
        left = sheet.width - 2 * 128 - 4
        column = [sheet.getpixel((left + 64, 64 + row * 132)) for row in range(4)]
    assert column == [(255, 0, 0), (0, 255, 0)] * 2 and 0 < left < 80
