"""A network in front of a tracking server that can be made to fail, request by request.

The one idea: a request is taken in whole, forwarded whole and answered whole, so that it can be cut at either of the
two moments that differ: before the server sees it (not done), and before the client sees the answer (done, and the
client cannot know).
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import re
import socketserver
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "content-length"}


@dataclass(frozen=True)
class Request:
    """The n-th request (from 0) that the proxy has taken in since `count` was last set to 0."""

    number: int
    method: str
    path: str
    range: str = ""  # the header, where a part of a file is asked for

    def __str__(self) -> str:
        """What is asked, without the ids that differ from run to run."""
        path = re.sub("[0-9a-f]{32}|[0-9a-f]{12}", "ID", self.path.partition("?")[0])
        return f"{self.method} {path.removeprefix('/api/2.0/')}"


Rule = Callable[[Request], object]


class LossyProxy:
    """Forwards HTTP on `port` (loopback) to `target`, as long as it is told to.

    `before` and `after` are asked about each request: before it is forwarded, and when its answer is here. A true
    answer cuts the connection; an int is the HTTP status to answer with instead. They may block.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.away = False  # refuse everything
        self.lose: set[bytes] = set()  # the answer to the next request whose path contains one of these is lost
        self.before: Rule = lambda request: False
        self.after: Rule = lambda request: False
        self.shorten: Callable[[Request], int | None] = lambda request: None  # bytes of an answer to send before a cut
        self.seen: list[Request] = []
        self._counting = threading.Lock()
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 1 << 16  # an answer in one packet: two would wait for each other (Nagle), 40 ms a request
            disable_nagle_algorithm = True

            def handle_one_request(self) -> None:
                # The client may be killed at any moment: its connection's end is no error of ours.
                with contextlib.suppress(OSError):
                    super().handle_one_request()
                    return
                self.close_connection = True

            def _any(self) -> None:
                proxy._serve(self)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = _any

            def log_message(self, *args: Any) -> None:
                pass

        class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
            daemon_threads = True
            request_queue_size = 64

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def uri(self) -> str:
        """The address to give to clients."""
        return f"http://127.0.0.1:{self.port}"

    def reset(self) -> None:
        """Forward everything again, and count from 0."""
        self.away, self.lose = False, set()
        self.before = self.after = lambda request: False
        self.shorten = lambda request: None
        self.seen = []

    def close(self) -> None:
        """Stop accepting connections."""
        self._server.shutdown()
        self._server.server_close()

    def _serve(self, handler: Any) -> None:
        body = _body(handler)
        with self._counting:
            request = Request(len(self.seen), handler.command, handler.path, handler.headers.get("Range", ""))
            self.seen.append(request)
        if self.away or self._refused(handler, self.before(request)):
            handler.close_connection = True
            return
        try:
            status, headers, answer = self._forward(handler, body)
        except (OSError, http.client.HTTPException):  # the server is not there, or died over it
            handler.close_connection = True
            return
        for lost in [lost for lost in self.lose if lost in handler.path.encode()]:
            self.lose.discard(lost)
            handler.close_connection = True
            return
        if self.away or self._refused(handler, self.after(request)):
            handler.close_connection = True
            return
        handler.send_response_only(status)
        for name, value in headers:
            if name.lower() not in _HOP:
                handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(answer)))
        handler.end_headers()
        if handler.command != "HEAD":
            shortened = self.shorten(request)
            handler.wfile.write(answer[:shortened])
            handler.close_connection = handler.close_connection or shortened is not None

    def _refused(self, handler: Any, verdict: object) -> bool:
        """Whether the request ends here: cut off, or answered with the status that was asked for."""
        if isinstance(verdict, int) and not isinstance(verdict, bool):
            handler.send_response_only(verdict)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
        return bool(verdict)

    def _forward(self, handler: Any, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.target, timeout=120)
        headers = {name: value for name, value in handler.headers.items() if name.lower() not in _HOP | {"host"}}
        headers |= {"Host": f"127.0.0.1:{self.target}", "Connection": "close", "Content-Length": str(len(body))}
        with contextlib.closing(connection):
            connection.request(handler.command, handler.path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()


def _body(handler: Any) -> bytes:
    if handler.headers.get("Transfer-Encoding", "").lower() == "chunked":
        parts = []
        while size := int(handler.rfile.readline().split(b";")[0], 16):
            parts.append(handler.rfile.read(size))
            handler.rfile.readline()
        handler.rfile.readline()
        return b"".join(parts)
    return handler.rfile.read(int(handler.headers.get("Content-Length", 0)))


def waits(condition: Callable[[], object], seconds: float = 60.0) -> bool:
    """Whether the condition came true within `seconds`: for tests that have to fail rather than hang."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.01)
    return False
