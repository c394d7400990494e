"""A file server on 127.0.0.1 that can be told to misbehave."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Behaviour:
    """What the server has and does; tests change it while the server runs.

    Attributes
    ----------
    content : bytes
    etag : str
        "": the server names no version.
    ranges : bool
        Whether it can continue in the middle.
    cut_after : list of int
        For each of the next requests, after how many bytes the connection is dropped.
    statuses : list of int
        Answers to the next requests instead of the content.
    content_type : str
    requests : list of dict
        Headers of what has been asked.
    """

    content: bytes
    etag: str = '"one"'
    ranges: bool = True
    cut_after: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    content_type: str = "application/octet-stream"
    requests: list[dict[str, str]] = field(default_factory=list)


@contextmanager
def serve(behaviour: Behaviour) -> Iterator[str]:
    """Yield the address of a running server."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            behaviour.requests.append(dict(self.headers))
            if behaviour.statuses:
                self.send_error(behaviour.statuses.pop(0))
                return
            start = self._start()
            if start >= len(behaviour.content) > 0:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(behaviour.content)}")
                self.end_headers()
                return
            self._send(start)

        def _start(self) -> int:
            wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            same = self.headers.get("If-Range", behaviour.etag) == behaviour.etag
            return int(wanted[1]) if wanted and same and behaviour.ranges else 0

        def _send(self, start: int) -> None:
            body = behaviour.content[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Type", behaviour.content_type)
            self.send_header("Content-Length", str(len(body)))
            if start:
                total = len(behaviour.content)
                self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
            if behaviour.etag:
                self.send_header("ETag", behaviour.etag)
            self.end_headers()
            if behaviour.cut_after:
                body = body[: behaviour.cut_after.pop(0)]
                self.close_connection = True
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Keep quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/m.model"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
