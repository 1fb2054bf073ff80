"""The tokenizer of Stable Diffusion 1.5, made from the byte-pair merges that open_clip ships."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

START, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 77
WORDS = 49408
MERGES = 48894
"""OpenAI's CLIP keeps this many of the file's merges: 512 byte symbols, the merges and two marks make 49408 entries."""


def byte_symbols() -> list[str]:
    """The 256 printable characters that stand for bytes, in GPT-2's order: those that print as they are come first."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) for byte in plain] + [chr(256 + place) for place in range(len(rest))]


def write_tokenizer(folder: Path) -> None:
    """Write vocab.json, merges.txt and the two configurations in the published layout. `folder` must exist."""
    import open_clip

    source = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(source.read_bytes()).decode("utf-8").split("\n")
    merges = lines[1 : MERGES + 1]
    letters = byte_symbols()
    entries = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(merge.split()) for merge in merges)]
    vocab = {entry: place for place, entry in enumerate([*entries, START, END])}
    if len(vocab) != WORDS:
        raise RuntimeError(f"open_clip's merges give {len(vocab)} entries instead of {WORDS}; its file has changed")
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    marks = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": LENGTH,
        "do_lower_case": True,
        "errors": "replace",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | marks, indent=1), encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(marks, indent=1), encoding="utf-8")
