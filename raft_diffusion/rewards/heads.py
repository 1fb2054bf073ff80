"""The published LAION aesthetic heads: which CLIP tower each was made for, and the file, downloaded once and checked.

A head only means something on the embeddings that it was trained on. Embeddings of other weights may be as wide: they
give numbers, and those say nothing.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from . import AESTHETICS

TIMEOUT = 60.0  # seconds without a byte
_V1 = "https://raw.githubusercontent.com/LAION-AI/aesthetic-predictor/6d122adad522ab246644d9dc1c6d7a3810ee255f/"
_V2 = (
    "https://raw.githubusercontent.com/christophschuhmann/improved-aesthetic-predictor/"
    "6934dd81792f086e613a121dbce43082cb8be85e/"
)


@dataclass(frozen=True, slots=True)
class Head:
    """A head for OpenAI's weights of `tower` (open_clip's name without -quickgelu), at a pinned address."""

    name: str
    tower: str
    url: str
    sha256: str

    @property
    def path(self) -> Path:
        """Where the file is kept once it was downloaded."""
        return cache_folder() / unquote(self.url.rpartition("/")[2])


HEADS = (
    Head(
        "aesthetic_v1",
        "ViT-L-14",
        f"{_V1}sa_0_4_vit_l_14_linear.pth",
        "2cd4e60f4f24ae3bcd57b847b13c1f3ba27edc28cc1a7f9ce74ee9f421243cba",
    ),
    Head(
        "aesthetic_v1",
        "ViT-B-32",
        f"{_V1}sa_0_4_vit_b_32_linear.pth",
        "c7b14cead230694acc7b9447974d3cad78003c72da032e402a303b6c2429e85f",
    ),
    Head(
        "aesthetic_v2",
        "ViT-L-14",
        f"{_V2}sac%2Blogos%2Bava1-l14-linearMSE.pth",
        "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",
    ),
)


def heads_for(tower: str, names: Sequence[str], sources: Mapping[str, str]) -> dict[str, Path]:
    """The head files of those `names` that are aesthetic scores, as `ClipTower.load` takes them.

    tower: a folder, or MODEL:PRETRAINED. sources: reward name -> a file of the user's own.
    A folder that carries a head gives `aesthetic` by itself, so it is left out here. Raises ValueError as `find_head`.
    """
    carried = os.path.isfile(Path(tower) / "aesthetic.safetensors")
    return {
        name: find_head(name, tower=tower, source=sources.get(name))
        for name in dict.fromkeys(names)
        if name in AESTHETICS and (name in sources or name != "aesthetic" or not carried)
    }


def find_head(name: str, *, tower: str, source: str | None = None) -> Path:
    """The file of the head `name` for this CLIP tower: `source` if one is given, else the published one, which is
    downloaded the first time. `aesthetic` is the newest that was published for the tower.

    Raises ValueError for a source that is no file, a tower without a published head, and a download that fails.
    """
    if source is not None:
        path = Path(os.path.expanduser(source))
        if not os.path.isfile(path):
            raise ValueError(
                f"the source of {name}: there is no file {source}; give a LAION head (.pth or .safetensors), or "
                "leave the source out to have the published one downloaded"
            )
        return path
    head = published(name, tower)
    if not (os.path.isfile(head.path) and _sha256(head.path.read_bytes()) == head.sha256):
        _download(head, name)
    return head.path


def cache_folder() -> Path:
    """Beside the hub's own cache: inside HF_HOME, where that is set."""
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expanduser(os.environ.get("HF_HOME") or f"{caches}/huggingface")) / "raft_diffusion"


def offline() -> bool:
    """Whether the hub's own switch forbids downloads."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def published(name: str, tower: str) -> Head:
    """The head that was published for a tower. Raises ValueError where there is none, and says for which."""
    model, _, weights = tower.partition(":")
    # weights in a file cannot be known; those that need this GELU and lie at hand are taken for OpenAI's
    openai = weights == "openai" or (model.endswith("-quickgelu") and os.path.isfile(weights))
    fitting = [head for head in HEADS if openai and head.tower == model.removesuffix("-quickgelu")]
    named = fitting if name == "aesthetic" else [head for head in fitting if head.name == name]
    if named:
        return named[-1]
    towers = dict.fromkeys(f"{head.tower}-quickgelu:openai" for head in HEADS if name in (head.name, "aesthetic"))
    raise ValueError(
        f"no head {name} was published for the CLIP tower {tower}: choose the tower {' or '.join(towers)}, "
        f"or give a head made for yours with {_own(name)}"
    )


def _own(name: str) -> str:
    return f"--set rewards.sources.{name}=FILE (in `score` and `rank`: --source {name}=FILE)"


def _download(head: Head, name: str) -> None:
    """Under a temporary name, checked, then renamed: an interrupted download leaves nothing that looks whole."""
    instead = f"download it yourself and give it with {_own(name)}"
    if offline():
        raise ValueError(
            f"the aesthetic head {head.path.name} is not in {head.path.parent} and HF_HUB_OFFLINE forbids to download "
            f"it: unset it once, or {instead} ({head.url})"
        )
    try:
        with urllib.request.urlopen(head.url, timeout=TIMEOUT) as response:
            content: bytes = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise ValueError(
            f"the aesthetic head {head.url} cannot be downloaded ({_told(error)}): try again, or {instead}"
        ) from error
    if (found := _sha256(content)) != head.sha256:
        raise ValueError(
            f"what came from {head.url} is not the head it must be (sha256 {found[:12]}..., not "
            f"{head.sha256[:12]}...), so it was not kept: a proxy may have answered; try again, or {instead}"
        )
    head.path.parent.mkdir(parents=True, exist_ok=True)
    temporary = head.path.with_name(f"{head.path.name}.{os.getpid()}.part")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, head.path)
    finally:
        temporary.unlink(missing_ok=True)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _told(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
