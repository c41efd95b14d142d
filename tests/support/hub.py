"""A server on this machine that speaks the Hugging Face Hub's protocol for files, as its client asks for them.

`GET` and `HEAD /OWNER/NAME/resolve/REVISION/FILE` answer as the hub does: with the commit, the SHA-256 as the etag and
the size, and a redirection to where the bytes are; there ranges are honoured, and a transfer may break off.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Serves `repositories`: of each its files. `asked` keeps method, path and range of each request.

    A repository in `gated` asks for consent; `cuts` are the bytes after which the next transfers break off.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.gated: set[str] = set()
        self.cuts: list[int] = []
        self.commit = COMMIT
        self.broken = False
        self.asked: list[tuple[str, str, str | None]] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                hub.asked.append((self.command, self.path, self.headers.get("Range")))
                if hub.broken:
                    self.reply(500)
                elif self.path.startswith("/bytes/"):
                    self.send_bytes(self.path.removeprefix("/bytes/"))
                else:
                    owner, name, _, revision, file = self.path.lstrip("/").split("/", 4)
                    self.resolve(f"{owner}/{name}", revision, file)

            def resolve(self, repository: str, revision: str, file: str) -> None:
                files = hub.repositories.get(repository)
                if files is None:
                    self.reply(401, **{"X-Error-Code": "RepoNotFound"})
                elif repository in hub.gated:
                    self.reply(403, **{"X-Error-Code": "GatedRepo"})
                elif revision not in ("main", hub.commit):
                    self.reply(404, **{"X-Error-Code": "RevisionNotFound"})
                elif file not in files:
                    self.reply(404, **{"X-Error-Code": "EntryNotFound", "X-Repo-Commit": hub.commit})
                else:
                    digest = hashlib.sha256(files[file]).hexdigest()
                    facts = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(files[file]))}
                    cdn = hub.url(f"bytes/{digest}").replace("127.0.0.1", "localhost")  # another host, as the hub's is
                    where = {"Location": cdn, "X-Repo-Commit": hub.commit}
                    self.reply(302, **facts, **where)

            def send_bytes(self, digest: str) -> None:
                every = [content for files in hub.repositories.values() for content in files.values()]
                content = next(c for c in every if hashlib.sha256(c).hexdigest() == digest)
                wanted = self.headers.get("Range")
                start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted else 0
                self.send_response(206 if wanted else 200)
                if wanted:
                    self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
                self.send_header("Content-Length", str(len(content) - start))
                self.end_headers()
                self.wfile.write(content[start:][: hub.cuts.pop(0) if hub.cuts else None])
                self.close_connection = True

            def reply(self, status: int, **headers: str) -> None:
                self.send_response(status)
                for name, value in {"Content-Length": "0", **headers}.items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def url(self, path: str = "") -> str:
        """The address of a path."""
        return f"http://127.0.0.1:{self.http.server_port}/{path}".rstrip("/")

    def transfers(self) -> list[str | None]:
        """The range of each transfer of bytes, None where all were asked for."""
        return [wanted for method, path, wanted in self.asked if method == "GET" and path.startswith("/bytes/")]

    def stop(self) -> None:
        """Go off the network."""
        self.http.shutdown()
        self.http.server_close()


@contextmanager
def serving_hub() -> Iterator[Hub]:
    """Run a hub while the block runs."""
    hub = Hub()
    threading.Thread(target=hub.http.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield hub
    finally:
        hub.stop()


def ask(code: str, hub: Hub, home: Path, **environment: str) -> Any:
    """Run Python code in a process of its own that talks to a hub; return what it assigns to `answer`.

    A TlxError comes back as its one line. The client reads its environment when it is imported.
    """
    script = (
        "import json\nfrom tlx.errors import TlxError\n"
        f"try:\n{''.join(f'    {line}{chr(10)}' for line in code.splitlines())}"
        "except TlxError as error:\n    answer = str(error)\n"
        "print()\nprint(json.dumps(answer))"
    )
    variables: Mapping[str, str] = {
        **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
        **{"HF_ENDPOINT": hub.url(), "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"},
        **environment,
    }
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=variables, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
