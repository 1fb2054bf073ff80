"""Serves the review page on this machine alone.

Only 127.0.0.1 is listened on, only requests that name it as their host are answered, and every address begins with a
random token: another page in the same browser, another user of the machine or a name that is made to point here (DNS
rebinding) gets 403.
"""

from __future__ import annotations

import hmac
import json
import os
import re
import secrets
import sys
import threading
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from .desk import Desk, Outdated

HERE = Path(__file__).parent
MESSAGE_BYTES = 1000  # what the page sends is far shorter
SECONDS = 5  # that a connection may be silent


class ReviewServer:
    """Answers from now on, in threads of its own, until `close`. Raises ValueError for a port that is taken."""

    def __init__(self, root: Path, *, index: int | None = None, port: int = 0) -> None:
        self.desk = Desk(root, index)
        token = secrets.token_urlsafe(24)
        try:
            self._server = _Server(("127.0.0.1", port), partial(_Handler, self.desk, token))
        except OSError as error:
            raise ValueError(f"port {port} cannot be used ({error.strerror}); give another --port, or none") from None
        self.address = f"http://127.0.0.1:{self._server.server_port}/{token}/"
        self._thread = threading.Thread(target=partial(self._server.serve_forever, poll_interval=0.1), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> ReviewServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # `close` lets the last answer go out
    allow_reuse_address = os.name != "nt"  # there it would let another program take the port

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a closed tab is no fault
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """One request. Its answers let the browser load nothing from elsewhere and run no script but the page's own."""

    server_version, sys_version = "raft-diffusion", ""
    timeout = SECONDS

    def __init__(self, desk: Desk, token: str, *arguments: Any) -> None:
        self._desk, self._token = desk, token
        super().__init__(*arguments)  # answers

    def do_GET(self) -> None:
        path = self._permitted()
        if path == "":
            self._page()
        elif path == "page.js":
            self._answer(HTTPStatus.OK, "text/javascript; charset=utf-8", (HERE / "page.js").read_bytes())
        elif path == "round":
            self._json(HTTPStatus.OK, self._told)
        elif path is not None and (found := re.fullmatch(r"picture/(\d{1,9})/(\d{1,9})/(\d{1,9})", path)):
            self._picture(*map(int, found.groups()))
        elif path is not None:
            self._refuse(HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        path = self._permitted()
        if path == "act":
            self._json(HTTPStatus.OK, lambda: self._desk.act(self._message()))
        elif path is not None:
            self._refuse(HTTPStatus.NOT_FOUND)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the token would be in it."""

    def _permitted(self) -> str | None:
        """What is asked for behind the token; None, and 403 is answered, for a stranger."""
        _, _, rest = self.path.partition("/")
        token, slash, path = rest.partition("/")
        own = f"127.0.0.1:{self.connection.getsockname()[1]}"
        known = hmac.compare_digest(token.encode("utf-8", "surrogateescape"), self._token.encode())
        host, origin = self.headers.get_all("Host") or [], self.headers.get("Origin")
        if slash and known and host == [own] and origin in (None, f"http://{own}"):
            return path
        self._refuse(HTTPStatus.FORBIDDEN)
        return None

    def _message(self) -> dict[str, Any]:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MESSAGE_BYTES:
            raise ValueError("the page sent too much, or did not say how much")
        try:
            message = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            raise ValueError("the page sent something that is no JSON object")
        return message

    def _told(self) -> dict[str, Any]:
        return self._desk.show()

    def _json(self, status: HTTPStatus, made: Any) -> None:
        try:
            answer = made()
        except Outdated as error:
            status, answer = HTTPStatus.CONFLICT, {"error": str(error)}
        except (ValueError, OSError) as error:
            status, answer = HTTPStatus.BAD_REQUEST, {"error": str(error)}
        self._answer(status, "application/json", json.dumps(answer).encode())

    def _page(self) -> None:
        nonce = secrets.token_urlsafe(16)
        html = (HERE / "page.html").read_text(encoding="utf-8").replace("NONCE", nonce)
        self._answer(HTTPStatus.OK, "text/html; charset=utf-8", html.encode(), style=f"'nonce-{nonce}'")

    def _picture(self, round_: int, group: int, place: int) -> None:
        path = self._desk.picture(round_, group, place)
        if path is None:
            self._refuse(HTTPStatus.NOT_FOUND)
        else:
            self._answer(HTTPStatus.OK, "image/png", path.read_bytes(), cache="private, max-age=600")

    def _refuse(self, status: HTTPStatus) -> None:
        self._answer(status, "text/plain; charset=utf-8", f"{status.value} {status.phrase}\n".encode())

    def _answer(
        self, status: HTTPStatus, kind: str, body: bytes, *, cache: str = "no-store", style: str = "'none'"
    ) -> None:
        own = "connect-src 'self'; img-src 'self' data:; script-src 'self'"
        closed = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Cache-Control": cache,
            "Content-Security-Policy": f"default-src 'none'; {own}; style-src {style}; {closed}",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
