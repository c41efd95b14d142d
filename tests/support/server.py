"""A real HTTP server on this machine, which serves bytes, honours ranges, and can break off."""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HEADERS = {
    "length": "Content-Length",
    "location": "Location",
    "encoding": "Content-Encoding",
    "range": "Content-Range",
    "etag": "ETag",
}


class Server:
    """Serves `files` by their paths. `asked` keeps path and range; `cut` ends each transfer after so many bytes.

    Where `respond` is set, it says instead how each path is answered: the arguments of `answer`.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.cut: int | None = None
        self.etags = False
        self.respond: Callable[[str], dict[str, Any]] | None = None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path, wanted = self.path.partition("?")[0].lstrip("/"), self.headers.get("Range")
                outer.asked.append((path, wanted))
                if outer.respond is not None:
                    self.answer(**outer.respond(path))
                    return
                if path not in outer.files:
                    self.send_error(404)
                    return
                content = outer.files[path]
                etag = f'"{hashlib.sha256(content).hexdigest()}"'
                same = self.headers.get("If-Range") in (None, etag)
                start = int(wanted[6:].split("-")[0]) if wanted and same else 0
                self.send_response(206 if start else 200)
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
                self.send_header("Content-Length", str(len(content) - start))
                if outer.etags:
                    self.send_header("ETag", etag)
                self.end_headers()
                self.wfile.write(content[start:][: outer.cut])
                self.close_connection = True

            def answer(
                self,
                content: bytes = b"",
                status: int = 200,
                raw: bytes | None = None,
                pause: float | None = None,
                **headers: str,
            ) -> None:
                """Answer with anything: headers by their names in `HEADERS`, or bytes that are no answer at all.

                With a `pause` in seconds, the content is sent again and again, for ever.
                """
                self.close_connection = True
                if pause is not None:
                    self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
                    with contextlib.suppress(OSError):
                        while True:
                            self.wfile.write(content)
                            time.sleep(pause)
                    return
                if raw is not None:
                    self.wfile.write(raw)
                    return
                self.send_response(status)
                for name, value in {"length": str(len(content)), **headers}.items():
                    self.send_header(HEADERS[name], value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def url(self, path: str) -> str:
        """The address of one of the files."""
        return f"http://127.0.0.1:{self.http.server_port}/{path}"

    def stop(self) -> None:
        """Go off the network."""
        self.http.shutdown()
        self.http.server_close()


@contextmanager
def serving() -> Iterator[Server]:
    """Run a server while the block runs."""
    server = Server()
    threading.Thread(target=server.http.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server
    finally:
        server.stop()
