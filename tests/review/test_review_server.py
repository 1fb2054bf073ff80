"""The review's server: who is let in, what is served, what is kept."""

import http.client
import json
import os
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from raft_diffusion.review.desk import Desk, Outdated, plain
from raft_diffusion.review.server import ReviewServer

TOYS = SimpleNamespace(**runpy.run_path(str(Path(__file__).parent / "toys.py")))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return TOYS.waiting_run(tmp_path_factory.mktemp("runs") / "waiting")


@pytest.fixture(scope="module")
def server(run):
    with ReviewServer(run) as server:
        yield server


def call(server, path="", *, method="GET", host=None, token=None, body=None, headers=()):
    """Status, headers and body of one plain request; `path` is what follows the token."""
    port = int(server.address.split(":")[2].split("/")[0])
    token = server.address.split("/")[3] if token is None else token
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    target = f"/{token}/{path}" if token else f"/{path}"
    connection.putrequest(method, target, skip_host=True)
    for name, value in [("Host", f"127.0.0.1:{port}" if host is None else host), *headers]:
        if value:
            connection.putheader(name, value)
    if body is not None:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body)
    answer = connection.getresponse()
    result = answer.status, dict(answer.getheaders()), answer.read()
    connection.close()
    return result


def act(server, **message):
    status, _, body = call(server, "act", method="POST", body=json.dumps(message).encode())
    return status, json.loads(body)


def test_the_address_is_this_machine_and_a_new_token_each_time(run, server):
    assert server.address.startswith("http://127.0.0.1:")
    with ReviewServer(run) as other:
        assert other.address.split("/")[3] != server.address.split("/")[3]
        assert len(other.address.split("/")[3]) >= 32


@pytest.mark.parametrize("path", ["", "round", "page.js", "picture/1/0/0"])
def test_the_own_page_is_answered(server, path):
    assert call(server, path)[0] == 200


@pytest.mark.parametrize("path", ["", "round", "page.js", "picture/1/0/0", "nothing"])
@pytest.mark.parametrize("token", ["", "x", "../" + "x" * 30, "%00"])
def test_without_the_token_it_is_403(server, path, token):
    status, _, body = call(server, path, token=token)
    assert (status, body) == (403, b"403 Forbidden\n")


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost", "127.0.0.1", "127.0.0.1:1", "127.0.0.1.evil.example", ""]
)
@pytest.mark.parametrize("path", ["", "round", "picture/1/0/0"])
def test_another_host_is_403(server, path, host):
    assert call(server, path, host=host)[0] == 403


def test_two_hosts_are_403(server):
    assert call(server, headers=[("Host", "evil.example")])[0] == 403


def test_writing_from_another_page_is_403(server, run):
    before = (run / "rounds/001.waiting").stat().st_mtime_ns
    body = json.dumps({"round": 1, "revision": 0, "do": "done", "group": 0}).encode()
    evil = [("Origin", "http://evil.example")]
    assert call(server, "act", method="POST", body=body, headers=evil)[0] == 403
    assert call(server, "act", method="POST", body=body, token="x")[0] == 403
    assert (run / "rounds/001.waiting").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "path",
    [
        "picture/1/0/99",
        "picture/9/0/0",
        "picture/1/9/0",
        "picture/1/0/-1",
        "picture/../../config.toml",
        "../config.toml",
        "picture/1/0/0/../../../../config.toml",
        "config.toml",
        "%2e%2e/config.toml",
        "page.html",
        "server.py",
    ],
)
def test_what_is_no_picture_is_404(server, path):
    assert call(server, path)[0] == 404


def test_a_link_that_leads_out_of_the_run_is_not_followed(tmp_path):
    run = TOYS.waiting_run(tmp_path / "run")
    (tmp_path / "secret.png").write_bytes(b"secret")
    for picture in (run / "rounds/001.waiting/candidates").glob("*.png"):
        picture.unlink()
        picture.symlink_to(tmp_path / "secret.png")
    with ReviewServer(run) as server:
        assert call(server, "picture/1/0/0")[0] == 404


def test_a_file_name_that_leads_out_of_the_run_is_refused(tmp_path):
    run = TOYS.waiting_run(tmp_path / "run")
    metadata = run / "rounds/001.waiting/candidates/metadata.jsonl"
    rows = [json.loads(line) for line in metadata.read_text().splitlines()]
    metadata.write_text("".join(json.dumps({**row, "file_name": "../../../config.toml"}) + "\n" for row in rows))
    with ReviewServer(run) as server:
        status, _, body = call(server, "round")
        assert status == 400
        assert b"file_name is no plain file name" in body


def test_answers_forbid_scripts_from_elsewhere(server):
    _, headers, _ = call(server)
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
    assert (headers["X-Content-Type-Options"], headers["Referrer-Policy"]) == ("nosniff", "no-referrer")


def test_the_page_is_told_no_score_no_seed_and_no_number(server):
    shown = json.loads(call(server, "round")[2])
    assert set(shown["groups"][0]) == {"prompt", "pictures"}
    assert [group["pictures"] for group in shown["groups"]] == [TOYS.K] * 3


def test_the_order_says_nothing_of_the_rank_and_stays(tmp_path):
    """In a finished run the places of the winners differ from prompt to prompt, and are the same at the next look."""
    prompts = [f"prompt {number}" for number in range(40)]
    run = tmp_path / "run"
    list(TOYS.rounds_of(run, TOYS.configure(prompts, human=False, rounds=1)))
    desks = [Desk(run, 1), Desk(run, 1)]
    sheets = [desk._open() for desk in desks]
    assert sheets[0].order == sheets[1].order
    places = [0] * TOYS.K
    for p, group in enumerate(sheets[0].round.groups):
        places[next(s for s in range(TOYS.K) if sheets[0].id_at(p, s) in sheets[0].round.winners)] += 1
        assert len({candidate.sample.id for candidate in group.candidates}) == TOYS.K
    assert min(places) >= 3  # 10 expected of each; below 3 has a chance of about 1 in 300


def test_every_click_is_on_disk_before_it_is_answered(tmp_path):
    run = TOYS.waiting_run(tmp_path / "run")
    with ReviewServer(run) as server:
        status, told = act(server, round=1, revision=0, do="choose", group=0, place=2)
        assert (status, told["groups"][0]) == (200, {"chosen": [2], "rejected": [], "done": False})
        kept = json.loads((run / "rounds/001.waiting/choices.json").read_text())["actions"]
        assert [row["do"] for row in kept] == ["choose"]
        act(server, round=1, revision=1, do="reject", group=0, place=0)
    with ReviewServer(run) as again:
        choices = json.loads(call(again, "round")[2])["choices"]
        assert choices["groups"][0] == {"chosen": [2], "rejected": [0], "done": False}
        assert act(again, round=1, revision=2, do="undo")[1]["groups"][0]["rejected"] == []


def test_two_windows_cannot_overwrite_each_other(tmp_path):
    run = TOYS.waiting_run(tmp_path / "run")
    one, other = Desk(run), Desk(run)
    one.act({"round": 1, "revision": 0, "do": "choose", "group": 0, "place": 1})
    with pytest.raises(Outdated, match="another window"):
        other.act({"round": 1, "revision": 0, "do": "choose", "group": 0, "place": 3})
    assert other.show()["choices"]["groups"][0]["chosen"] == [1]


@pytest.mark.parametrize(
    ("message", "status"),
    [
        ({"do": "choose", "group": 0, "place": 99}, 400),
        ({"do": "choose", "group": -1, "place": 0}, 400),
        ({"do": "choose", "group": "0", "place": 0}, 400),
        ({"do": "eval", "group": 0}, 400),
        ({"do": "finish"}, 400),
        ({"do": "undo"}, 400),
        ({"do": "done", "group": 0, "round": 2}, 409),
        ({"do": "done", "group": 0, "revision": 7}, 409),
    ],
)
def test_what_makes_no_sense_changes_nothing(server, run, message, status):
    answered, told = act(server, **{"round": 1, "revision": 0, **message})
    assert answered == status and told["error"]
    assert not (run / "rounds/001.waiting/choices.json").exists()


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b'{"do": "' + b"x" * 5000 + b'"}', b"[" * 900])
def test_a_broken_message_is_refused(server, body):
    assert call(server, "act", method="POST", body=body)[0] == 400


def test_a_port_that_is_taken_is_named(server, run):
    port = int(server.address.split(":")[2].split("/")[0])
    with pytest.raises(ValueError, match=f"port {port} cannot be used"):
        ReviewServer(run, port=port)


@pytest.mark.skipif(os.name == "nt", reason="Linux keeps 127.0.0.2 for this machine as well")
def test_it_listens_on_no_other_address(server):
    port = int(server.address.split(":")[2].split("/")[0])
    with pytest.raises(ConnectionRefusedError):
        http.client.HTTPConnection("127.0.0.2", port, timeout=5).request("GET", "/")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a cat", "a cat"),
        ("größe 🐈 日本 عربي", "größe 🐈 日本 عربي"),
        ("two\nlines", "two\nlines"),
        ("\x1b[31mred\x07", "�[31mred�"),
        ("abc\u202edcb\u2066x", "abc�dcb�x"),
        ("\U0001f468\u200d\U0001f467", "\U0001f468\u200d\U0001f467"),
    ],
)
def test_control_characters_are_shown_as_signs(text, shown):
    assert plain(text) == shown
