"""A server on this machine that speaks the Hugging Face Hub's protocol for files, as its client asks for them.

`GET` and `HEAD /OWNER/NAME/resolve/REVISION/FILE` answer as the hub does: with the commit, the SHA-256 as the etag and
the size, and a redirection to where the bytes are; there ranges are honoured, and a transfer may break off. With the
token of a user, repositories are made and written to: small files come with the commit, large ones by the protocol of
Git LFS.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

TOKEN = "hf_secret"
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
        self.users = {TOKEN: "me"}  # by their tokens
        self.private: set[str] = set()
        self.stored: dict[str, bytes] = {}  # by its SHA-256, what was uploaded and not yet committed
        self.uploads_break = False
        self.controls: dict[str, Callable[[], object]] = {}  # by the path below /control/ that calls them
        self.written: list[str] = []  # repositories, one for each commit
        self.asked: list[tuple[str, str, str | None]] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                hub.asked.append((self.command, self.path, self.headers.get("Range")))
                if hub.broken:
                    self.reply(500)
                elif self.path.startswith("/control/"):  # what else happens meanwhile, by somebody else
                    hub.controls[self.path.removeprefix("/control/")]()
                    self.answer({})
                elif self.path.startswith("/api/models/"):
                    self.describe(self.path.removeprefix("/api/models/"))
                elif self.path.startswith("/bytes/"):
                    self.send_bytes(self.path.removeprefix("/bytes/"))
                elif self.path.count("/") < 5:  # what a client asks of the hub itself
                    self.reply(404)
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

            def describe(self, repository: str) -> None:
                if repository not in hub.repositories:
                    self.reply(401, **{"X-Error-Code": "RepoNotFound"})
                    return
                siblings = [{"rfilename": name} for name in hub.repositories[repository]]
                facts = {"id": repository, "sha": hub.commit, "private": repository in hub.private}
                self.answer({**facts, "siblings": siblings, "tags": [], "downloads": 0, "likes": 0})

            def do_PUT(self) -> None:
                """Take the content of a large file, where the batch said."""
                hub.asked.append((self.command, self.path, None))
                content = self.rfile.read(int(self.headers["Content-Length"]))
                if hub.uploads_break:
                    self.reply(403)
                    return
                digest = hashlib.sha256(content).hexdigest()
                assert self.path == f"/upload/{digest}"
                hub.stored[digest] = content
                self.reply(200)

            def do_POST(self) -> None:
                hub.asked.append((self.command, self.path, None))
                if "chunked" in self.headers.get("Transfer-Encoding", ""):
                    content = b""
                    while size := int(self.rfile.readline(), 16):
                        content += self.rfile.read(size)
                        self.rfile.readline()
                else:
                    content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                path = self.path.partition("?")[0]
                if path == "/api/validate-yaml":
                    self.answer({"errors": [], "warnings": []})
                    return
                user = hub.users.get(self.headers.get("Authorization", "").removeprefix("Bearer "))
                if user is None:
                    self.reply(401)
                elif path == "/api/repos/create":
                    self.create(user, json.loads(content))
                elif path.endswith(".git/info/lfs/objects/batch"):
                    self.batch(json.loads(content))
                else:
                    owner, name, action = path.removeprefix("/api/models/").split("/")[:3]
                    repository = f"{owner}/{name}"
                    if repository not in hub.repositories:
                        self.reply(404, **{"X-Error-Code": "RepoNotFound"})
                    elif owner != user:
                        self.reply(403)
                    elif action == "preupload":
                        files = json.loads(content)["files"]
                        modes = [
                            {
                                "path": file["path"],
                                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                                "shouldIgnore": False,
                                "oid": None,
                            }
                            for file in files
                        ]
                        self.answer({"files": modes})
                    else:
                        self.take_commit(repository, content)

            def create(self, user: str, asked: dict[str, Any]) -> None:
                repository = f"{asked['organization']}/{asked['name']}"
                if asked["organization"] != user:
                    self.reply(403)
                    return
                hub.repositories[repository] = {".gitattributes": b"*.safetensors filter=lfs"}
                if asked.get("visibility") == "private":
                    hub.private.add(repository)
                self.answer({"url": hub.url(repository)})

            def batch(self, asked: dict[str, Any]) -> None:
                objects = [
                    {
                        **known,
                        **(
                            {}
                            if known["oid"] in hub.stored
                            else {"actions": {"upload": {"href": hub.url(f"upload/{known['oid']}")}}}
                        ),
                    }
                    for known in asked["objects"]
                ]
                self.answer({"transfer": "basic", "objects": objects})

            def take_commit(self, repository: str, content: bytes) -> None:
                files: dict[str, bytes] = {}
                for line in map(json.loads, content.splitlines()):
                    value = line["value"]
                    if line["key"] == "file":
                        files[value["path"]] = base64.b64decode(value["content"])
                    elif line["key"] == "lfsFile":
                        files[value["path"]] = hub.stored[value["oid"]]
                hub.repositories[repository] |= files
                hub.written.append(repository)
                hub.commit = hashlib.sha1(str(len(hub.written)).encode()).hexdigest()
                self.answer({"commitUrl": hub.url(f"{repository}/commit/{hub.commit}"), "commitOid": hub.commit})

            def answer(self, value: Any) -> None:
                content = json.dumps(value).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

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
