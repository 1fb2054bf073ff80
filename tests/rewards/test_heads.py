"""Where the aesthetic heads come from: a file, the cache, or a server that stands in for the published address."""

import hashlib
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from raft_diffusion.rewards import heads
from raft_diffusion.rewards.heads import HEADS, cache_folder, find_head, heads_for

CONTENT = b"a head" * 1000
L14, B32 = "ViT-L-14-quickgelu:openai", "ViT-B-32-quickgelu:openai"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return tmp_path / "home"


@pytest.fixture
def server(monkeypatch):
    """Answers every address with `content`, of which `sent` bytes go out; HEADS point at it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            http.asked.append(self.path)
            self.send_response(http.status)
            self.send_header("Content-Length", str(len(http.content)))
            self.end_headers()
            self.wfile.write(http.content[: http.sent])

        def log_message(self, *args):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.asked, http.status, http.content, http.sent = [], 200, CONTENT, None
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    address = f"http://127.0.0.1:{http.server_port}"
    pointed = [replace(head, url=address + urlsplit(head.url).path, sha256=sha256) for head in HEADS]
    monkeypatch.setattr(heads, "HEADS", tuple(pointed))
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    yield http
    http.shutdown()
    thread.join()
    http.server_close()


def kept(home) -> list[str]:
    return sorted(path.name for path in home.rglob("*") if path.is_file())


def test_a_head_is_downloaded_once_into_the_cache(server, home):
    path = find_head("aesthetic_v2", tower=L14)
    assert path == home / "raft_diffusion/sac+logos+ava1-l14-linearMSE.pth"
    assert path.read_bytes() == CONTENT
    assert find_head("aesthetic_v2", tower=L14) == path
    assert len(server.asked) == 1
    assert kept(home) == [path.name]


def test_a_head_that_was_damaged_is_downloaded_again(server):
    path = find_head("aesthetic_v1", tower=L14)
    path.write_bytes(CONTENT[:-1])
    assert find_head("aesthetic_v1", tower=L14).read_bytes() == CONTENT


def test_other_content_than_the_pinned_is_not_kept(server, home):
    server.content = b"please log in"
    with pytest.raises(
        ValueError, match=r"is not the head it must be \(sha256 .* --set rewards\.sources\.aesthetic_v1=F"
    ):
        find_head("aesthetic_v1", tower=L14)
    assert kept(home) == []


def test_an_interrupted_download_leaves_nothing(server, home):
    server.sent = len(CONTENT) // 2
    with pytest.raises(
        ValueError, match=r"cannot be downloaded \(IncompleteRead.*: try again, or download it yourself"
    ):
        find_head("aesthetic_v1", tower=L14)
    assert kept(home) == []


def test_a_write_that_fails_leaves_nothing(server, home, monkeypatch):
    def refuse(source, target):
        raise OSError("disk full")

    monkeypatch.setattr(heads.os, "replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        find_head("aesthetic_v1", tower=L14)
    assert kept(home) == []


def test_a_server_that_does_not_have_it_is_one_sentence(server, home):
    server.status = 404
    with pytest.raises(
        ValueError, match=r"linear\.pth cannot be downloaded \(HTTP Error 404: Not Found\): try again, or"
    ):
        find_head("aesthetic_v1", tower=B32)
    assert kept(home) == []


def test_without_a_network_is_one_sentence(server):
    server.shutdown()
    server.server_close()
    with pytest.raises(
        ValueError, match=r"cannot be downloaded \(.*\): try again, or download it yourself and give it"
    ):
        find_head("aesthetic_v1", tower=L14)


@pytest.mark.parametrize("value", ["1", "true", "YES", "on"])
def test_offline_nothing_is_asked_and_what_is_there_is_used(server, home, monkeypatch, value):
    path = find_head("aesthetic_v1", tower=L14)
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert find_head("aesthetic_v1", tower=L14) == path
    with pytest.raises(ValueError, match=r"linearMSE\.pth is not in .*raft_diffusion and HF_HUB_OFFLINE forbids"):
        find_head("aesthetic_v2", tower=L14)
    assert len(server.asked) == 1


def test_a_file_of_the_users_own_is_taken_as_it_is_for_any_tower(tmp_path):
    (tmp_path / "mine.pth").write_bytes(b"mine")
    assert find_head("aesthetic_v1", tower="any", source=str(tmp_path / "mine.pth")) == tmp_path / "mine.pth"


def test_a_source_that_is_no_file_is_one_sentence(tmp_path):
    with pytest.raises(
        ValueError, match=r"the source of aesthetic_v1: there is no file .*mine\.pth; give a LAION head"
    ):
        find_head("aesthetic_v1", tower=L14, source=str(tmp_path / "mine.pth"))


@pytest.mark.parametrize(
    ("name", "tower", "towers"),
    [
        ("aesthetic_v2", B32, L14),
        ("aesthetic_v1", "ViT-L-14:laion2b_s32b_b82k", f"{L14} or {B32}"),
        ("aesthetic_v1", "ViT-L-14-quickgelu:dfn2b", f"{L14} or {B32}"),
        ("aesthetic_v1", "ViT-L-14-336-quickgelu:openai", f"{L14} or {B32}"),
        ("aesthetic", "ViT-H-14:laion2b_s32b_b79k", f"{L14} or {B32}"),
        ("aesthetic", "a folder without a head", f"{L14} or {B32}"),
    ],
)
def test_a_head_is_only_for_the_embeddings_that_it_was_made_on(name, tower, towers):
    sentence = (
        f"no head {name} was published for the CLIP tower {tower}: choose the tower {towers}, or give a head made"
    )
    with pytest.raises(ValueError, match=sentence):
        find_head(name, tower=tower)


def test_the_general_name_is_the_newest_head_of_the_tower(server):
    files = heads_for(L14, ["text_image", "aesthetic", "aesthetic_v1", "aesthetic_v2", "pickscore"], {})
    assert {name: path.name for name, path in files.items()} == {
        "aesthetic": "sac+logos+ava1-l14-linearMSE.pth",
        "aesthetic_v1": "sa_0_4_vit_l_14_linear.pth",
        "aesthetic_v2": "sac+logos+ava1-l14-linearMSE.pth",
    }
    assert heads_for(B32, ["aesthetic"], {})["aesthetic"].name == "sa_0_4_vit_b_32_linear.pth"
    assert len(server.asked) == 3


def test_openais_weights_may_be_a_file(server, tmp_path):
    (tmp_path / "openai.safetensors").write_bytes(b"")
    tower = f"ViT-L-14-quickgelu:{tmp_path / 'openai.safetensors'}"
    assert find_head("aesthetic", tower=tower).name == "sac+logos+ava1-l14-linearMSE.pth"


def test_a_folder_that_carries_a_head_needs_no_other(tmp_path):
    (tmp_path / "aesthetic.safetensors").write_bytes(b"")
    assert heads_for(str(tmp_path), ["text_image", "aesthetic"], {}) == {}
    (tmp_path / "mine.pth").write_bytes(b"")
    mine = str(tmp_path / "mine.pth")
    assert heads_for(str(tmp_path), ["aesthetic"], {"aesthetic": mine}) == {"aesthetic": Path(mine)}


def test_nothing_is_looked_for_that_is_not_wanted(home):
    assert heads_for(L14, ["text_image", "pickscore", "brightness"], {}) == {}
    assert not home.exists()


def test_the_cache_lies_beside_the_hubs_own(tmp_path, monkeypatch):
    assert cache_folder() == tmp_path / "home/raft_diffusion"
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert cache_folder() == tmp_path / "caches/huggingface/raft_diffusion"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache/huggingface/raft_diffusion"


def test_every_address_is_pinned_to_a_commit():
    for head in HEADS:
        assert head.url.startswith("https://raw.githubusercontent.com/")
        commit = head.url.split("/")[5]
        assert len(commit) == 40 and int(commit, 16)
        assert len(head.sha256) == 64 and int(head.sha256, 16)
