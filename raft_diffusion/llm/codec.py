"""How a round's texts lie on disk: one text file a sample for people, and the winners' exact tokens for the tuner."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.files import write_part
from ..core.records import Sample
from .completion import Completion

TOKENS = "tokens.json"


class TextCodec:
    """The `core.store.Codec` of completions."""

    def begin(self, samples: Sequence[Sample]) -> None:
        """Nothing: a text is written as it stands."""

    def write_samples(self, folder: Path, samples: Sequence[Sample], *, keep: bool) -> list[str]:
        """Write `<sample id>.txt` for each sample into an existing folder and return the names, in order.

        keep: also write tokens.json, the prompt's and the answer's tokens by sample id.
        """
        names = [f"{sample.id}.txt" for sample in samples]
        for name, sample in zip(names, samples, strict=True):
            # A model may write half a character; the tokens keep it, a text file cannot.
            write_part(folder / name, sample.data.text.encode("utf-8", "replace"))
        if keep:
            tokens = {sample.id: {"prompt": sample.data.prompt_ids, "answer": sample.data.ids} for sample in samples}
            write_part(folder / TOKENS, (json.dumps(tokens) + "\n").encode())
        return names

    def pack(self, samples: Sequence[Sample]) -> bytes:
        """Texts and tokens of a batch, exactly."""
        rows = [[sample.data.text, sample.data.prompt_ids, sample.data.ids] for sample in samples]
        return json.dumps(rows).encode()

    def unpack(self, content: bytes) -> list[Completion]:
        """What `pack` was given, in order."""
        return [Completion(text, tuple(prompt), tuple(answer)) for text, prompt, answer in json.loads(content)]

    def read_samples(self, folder: Path, rows: Sequence[Mapping[str, Any]]) -> list[Completion]:
        """Read back what `write_samples(keep=True)` wrote; each row needs its "id" and "file_name".

        Raises ValueError naming a text or its tokens that are missing or damaged.
        """
        if not rows:
            return []
        tokens = _read_tokens(folder / TOKENS)
        return [_completion(folder, row, tokens) for row in rows]


def _read_tokens(path: Path) -> dict[str, Any]:
    try:
        tokens = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        tokens = None
    if not isinstance(tokens, dict):
        raise ValueError(f"{path} is missing or damaged: the winners of that round cannot be trained on again")
    return tokens


def _completion(folder: Path, row: Mapping[str, Any], tokens: Mapping[str, Any]) -> Completion:
    try:
        text = (folder / row["file_name"]).read_bytes().decode("utf-8")
        kept = tokens[row["id"]]
        prompt, answer = (tuple(map(int, kept[part])) for part in ("prompt", "answer"))
    except (OSError, KeyError, TypeError, ValueError):
        raise ValueError(f"sample {row['id']} of {folder} has lost its text or its tokens") from None
    return Completion(text, prompt, answer)
