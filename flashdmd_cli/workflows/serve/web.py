"""The HTTP server of `flashdmd sample --serve`, for browsers on the same machine only.

A page of another site that is open in the same browser must not reach it. Such a page can send requests to 127.0.0.1,
also under its own host name (DNS rebinding). So every request has to name this machine in its `Host` header, and a
request that costs work has to be JSON, which browsers send for pages of the same origin alone.
"""

from __future__ import annotations

import errno
import json
import re
import socketserver
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from flashdmd_cli.evaluation.page import allowed
from flashdmd_cli.runs.errors import UsageError
from flashdmd_cli.workflows.serve.studio import Busy, Studio

HOST = "127.0.0.1"
NAMES = (HOST, "localhost")
"""Names of this machine in a `Host` header; with any port, for it may be forwarded through SSH."""
MAX_BODY = 2**16
"""Bytes of a request."""
IDLE_SECONDS = 30
"""A connection that sends nothing for so long is closed."""
NONE = "'none'"
PAGE = Path(__file__).with_name("page.html")


class Refused(Exception):
    """A request that is refused with an HTTP status."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Server(ThreadingHTTPServer):
    """Listens on 127.0.0.1; a request waits in its own thread until the studio has answered."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        """Listen on `port` (0: a free one); `UsageError` if it cannot be had."""
        self.studio: Studio | None = None
        self.facts: Mapping[str, Any] = {}
        try:
            super().__init__((HOST, port), Handler)
        except (OSError, OverflowError) as error:
            taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
            reason = "another program uses it" if taken else str(error)
            raise UsageError(f"--port {port}: {reason}", hint="--port 0 takes a free one") from None

    def server_bind(self) -> None:
        """Without the look-up of the machine's name by `HTTPServer`, which may take seconds."""
        socketserver.TCPServer.server_bind(self)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_address[1]}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: a browser that closes a connection is no error."""


class Handler(BaseHTTPRequestHandler):
    """`GET /`: the page; `GET /state`: models and queue; `POST /draw`: a picture. Answers are JSON but for the page."""

    server: Server
    timeout = IDLE_SECONDS

    def do_GET(self) -> None:
        self._reply({"/": self._page, "/state": self._state})

    def do_POST(self) -> None:
        self._reply({"/draw": self._draw})

    def _reply(self, routes: Mapping[str, Callable[[], tuple[bytes, str]]]) -> None:
        """Answer with the result of the route, or with the reason why there is none."""
        status = 200
        try:
            self._check_origin()
            if (route := routes.get(self.path.partition("?")[0])) is None:
                raise Refused(404, "no such page")
            body, kind = route()
        except Exception as error:
            status = _status(error)
            body, kind = _json({"error": on_page(error)})
        self.send_response(status)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Content-Security-Policy": policy(body if kind.startswith("text/html") else b""),
            "Cache-Control": "no-store",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _check_origin(self) -> None:
        host = self.headers.get("Host", "")
        if re.sub(r":\d+$", "", host) not in NAMES:
            raise Refused(403, f"open this page as http://{HOST}:PORT/")
        if self.headers.get("Origin", f"http://{host}") != f"http://{host}":
            raise Refused(403, "requests of other pages are refused")

    def _page(self) -> tuple[bytes, str]:
        return PAGE.read_bytes(), "text/html; charset=utf-8"

    def _state(self) -> tuple[bytes, str]:
        assert self.server.studio is not None
        return _json({**self.server.facts, **self.server.studio.state()})

    def _draw(self) -> tuple[bytes, str]:
        assert self.server.studio is not None
        if self.headers.get_content_type() != "application/json":
            raise Refused(415, "the request must be application/json")
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"\d{1,9}", length):
            raise Refused(411, "the request must have a Content-Length")
        if int(length) > MAX_BODY:
            raise Refused(413, f"the request is larger than {MAX_BODY} bytes")
        try:
            values = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            raise Refused(400, "the request is not JSON") from None
        if not isinstance(values, dict):
            raise Refused(400, "the request is not a JSON object")
        return _json(self.server.studio.draw(values))

    def version_string(self) -> str:
        return "flashdmd"

    def log_message(self, *_: Any) -> None:
        """Nothing: the studio reports what is drawn."""


def policy(page: bytes) -> str:
    """The content security policy of a page: only what stands in it, pictures in data, and requests to this server."""
    scripts = re.findall(rb"<script>(.*?)</script>", page, re.DOTALL)
    hashes = [allowed(each) for each in scripts]
    return (
        f"default-src 'none'; script-src {' '.join(hashes) or NONE}; style-src 'unsafe-inline'; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def on_page(error: Exception) -> str:
    """The text of an error for the page, which has no options of the command line: those that it names are left out."""
    text = re.sub(r"^--[a-z-]+[^:]*: ", "", str(error)) or type(error).__name__
    hint = getattr(error, "hint", "")
    return f"{text} ({hint})" if hint and "--" not in hint else text


def _status(error: Exception) -> int:
    """The HTTP status of an error."""
    if isinstance(error, Refused):
        return error.status
    if isinstance(error, UsageError):
        return 400
    return 503 if isinstance(error, Busy) else 500


def _json(values: Mapping[str, Any]) -> tuple[bytes, str]:
    return json.dumps(values).encode(), "application/json"
