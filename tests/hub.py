"""A model hub on 127.0.0.1 that serves folders: what huggingface_hub asks for to look at a model and download it.

Set HF_ENDPOINT to `url`, and HF_HOME to a folder of the test's own, in a fresh process: both are read at import.
"""

import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

INFO = re.compile(r"/api/models/([\w.-]+/[\w.-]+?)(?:/(revision|tree)/([^/]+))?/?")
FILE = re.compile(r"/([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)")


class Hub:
    """repositories: "owner/name" -> revision -> folder; None for one whose terms must be accepted first.

    requests: what was asked for, "METHOD path".
    """

    def __init__(self, repositories):
        self.repositories, self.requests = repositories, []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def find(self, repository, revision):
        """(commit, folder), or the code that the hub gives to what is wrong."""
        if repository not in self.repositories:
            return "RepoNotFound", None
        if self.repositories[repository] is None:
            return "GatedRepo", None
        for name, folder in self.repositories[repository].items():
            commit = hashlib.sha1(f"{repository}@{name}".encode()).hexdigest()
            if revision in (name, commit):
                return commit, Path(folder)
        return "RevisionNotFound", None


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        if found := INFO.fullmatch(path):
            self._tell(found[1], found[2], found[3] or "main")
        elif found := FILE.fullmatch(path):
            self._send(found[1], found[2], found[3])
        else:
            self._answer(404)

    def _tell(self, repository, what, revision):
        commit, folder = self.hub.find(repository, revision)
        if folder is None:
            return self._refuse(commit)
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        names = [file.relative_to(folder).as_posix() for file in files]
        answer = {"id": repository, "sha": commit, "siblings": [{"rfilename": name} for name in names], "tags": []}
        if what == "tree":
            tags = [{"size": file.stat().st_size, "oid": _etag(file)} for file in files]
            answer = [{"type": "file", "path": name} | tag for name, tag in zip(names, tags, strict=True)]
        return self._answer(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _send(self, repository, revision, name):
        commit, folder = self.hub.find(repository, revision)
        if folder is None:
            return self._refuse(commit)
        if not (folder / name).is_file():
            return self._refuse("EntryNotFound", {"X-Repo-Commit": commit})
        file = folder / name
        first, end = 0, file.stat().st_size
        headers = {"ETag": f'"{_etag(file)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if part:
            headers["Content-Range"] = f"bytes {part[1]}-{part[2] or end - 1}/{end}"
            first, end = int(part[1]), int(part[2]) + 1 if part[2] else end
        self._start(206 if part else 200, end - first, headers)
        if self.command == "GET":
            with file.open("rb") as data:
                data.seek(first)
                while first < end and (block := data.read(min(2**20, end - first))):
                    self.wfile.write(block)
                    first += len(block)
        return None

    def _refuse(self, code, headers=None):
        self._answer(403 if code == "GatedRepo" else 404, b"", {"X-Error-Code": code, **(headers or {})})

    def _answer(self, status, body=b"", headers=None):
        self._start(status, len(body), headers or {})
        if self.command == "GET":
            self.wfile.write(body)

    def _start(self, status, length, headers):
        self.send_response(status)
        for key, value in {"Content-Length": str(length), **headers}.items():
            self.send_header(key, value)
        self.end_headers()


def _etag(file):
    return hashlib.sha1(f"{file} {file.stat().st_size}".encode()).hexdigest()
