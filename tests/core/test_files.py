import os

import pytest

from raft_diffusion.core.files import read_text, write_atomically


def read(path):
    return read_text(path, what="recipe", advice="give a recipe")


def test_text_comes_back_with_and_without_a_byte_order_mark(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("größe\r\n🐈".encode())
    assert read(path) == "größe\r\n🐈"
    path.write_bytes(b"\xef\xbb\xbf\xc3\xa4")
    assert read(path) == "ä"


def test_what_cannot_be_read_is_refused_with_the_advice(tmp_path):
    path = tmp_path / "a.txt"
    with pytest.raises(ValueError, match=r"^there is no recipe .*a\.txt; give a recipe$"):
        read(path)
    with pytest.raises(ValueError, match=r"^the recipe .* is a folder; give a recipe$"):
        read(tmp_path)
    path.write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"^the recipe .*a\.txt is not UTF-8 \(byte 3\); save it as UTF-8$"):
        read(path)
    with pytest.raises(ValueError, match=r"^the recipe .* cannot be read \(.+\); give a recipe$"):
        read(path / "b.txt")


def test_written_text_has_plain_newlines_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("a longer text that was there before")
    write_atomically(path, "größe\n")
    assert path.read_bytes() == "größe\n".encode()
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_write_that_fails_leaves_the_old_text(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def full(handle):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
