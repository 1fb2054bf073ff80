"""What a run has made and no finished round holds yet, so that a stop costs one batch at most.

unfinished/round/<key>.batch       a batch of candidates, whole
unfinished/round/<key>.tuning      how far the tuning of the round has come
unfinished/guard, evaluate         the same for what they sample

A key says all that the content follows from (draws, settings, weights), so that nothing here can ever be taken for
something else; what is damaged counts as absent and is made again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from .files import write_atomically
from .records import Draw, Sample

FOLDER = "unfinished"
FORMAT = 1
"""Of the contents; another one finds nothing of this one's."""
DIGEST = hashlib.sha256().digest_size


class Packer(Protocol):
    """How a modality's samples become bytes and come back bit by bit."""

    def pack(self, samples: Sequence[Sample]) -> bytes: ...
    def unpack(self, content: bytes) -> list[Any]: ...


class Shelf:
    """Where finished parts of one unfinished piece of work are kept.

    folder: made with the first part. identity: what all parts follow from beside their own keys.
    """

    def __init__(self, folder: Path, *, packer: Packer, identity: str) -> None:
        self._folder, self._packer, self._identity = folder, packer, identity

    def batch(self, draws: Sequence[Draw], made_of: object, make: Callable[[], list[Sample]]) -> list[Sample]:
        """The samples of these draws, which are one batch: those that were kept, else `make`'s, which are kept then."""
        found = self.find(draws, made_of)
        if found is None:
            found = make()
            self.keep(draws, made_of, found)
        return found

    def find(self, draws: Sequence[Draw], made_of: object) -> list[Sample] | None:
        """The samples of these draws, if they were kept as one batch.

        made_of: all that they follow from beside their draws, as JSON can write it.
        """
        content = self.read(self._name(draws, made_of))
        if content is None:
            return None
        return [Sample(draw, data) for draw, data in zip(draws, self._packer.unpack(content), strict=True)]

    def keep(self, draws: Sequence[Draw], made_of: object, samples: Sequence[Sample]) -> None:
        self.write(self._name(draws, made_of), self._packer.pack(samples))

    def _name(self, draws: Sequence[Draw], made_of: object) -> str:
        asked = [[draw.id, draw.group, draw.seed, draw.prompt.text, draw.prompt.negative] for draw in draws]
        return f"{self.key([asked, made_of])}.batch"

    def key(self, made_of: object) -> str:
        """A name for what follows from this, the same in every process."""
        return hashlib.sha256(json.dumps([FORMAT, self._identity, made_of]).encode()).hexdigest()[:32]

    def read(self, name: str) -> bytes | None:
        """What was written under this name; None where there is nothing, or it is damaged."""
        try:
            content = (self._folder / name).read_bytes()
        except OSError:
            return None
        digest, content = content[:DIGEST], content[DIGEST:]
        return content if hashlib.sha256(content).digest() == digest else None

    def write(self, name: str, content: bytes) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self._folder / name, hashlib.sha256(content).digest() + content)

    def clear(self) -> None:
        """The work is finished and lies elsewhere."""
        shutil.rmtree(self._folder, ignore_errors=True)
        with suppress(OSError):  # other work lies there
            self._folder.parent.rmdir()


class Unfinished:
    """The shelves of a run by the work that they belong to."""

    def __init__(self, root: Path, *, packer: Packer, identity: str) -> None:
        self._root, self._packer, self._identity = root / FOLDER, packer, identity

    def shelf(self, work: str) -> Shelf:
        return Shelf(self._root / work, packer=self._packer, identity=self._identity)

    def clear(self) -> None:
        """Nothing is unfinished any more."""
        shutil.rmtree(self._root, ignore_errors=True)
