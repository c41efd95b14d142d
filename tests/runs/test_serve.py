"""`tlx serve` as a real process: what it answers, what it refuses, how it ends, and its page in a real browser."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

import tlx
from support.finished_runs import FIELDS, ON_DIGITS, load_digits
from support.hostile_photos import BOMBS, SEEDS
from tlx.errors import TlxError
from tlx.runs.server import MAX_BYTES
from tlx.runs.service import Service

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ["<img src=x onerror=document.title='hacked'>", "猫 & 'cats'", "{{note}}", "x" * 120, "a\u202eb", *"56789"]
EVIL = "<img src=x onerror=alert(1)>.png"


@dataclass
class Served:
    """A process that serves a run."""

    process: subprocess.Popen[str]
    port: int

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, path: str, body: Any = None, method: str = "POST", **headers: str) -> tuple[int, Any]:
        """The status and the JSON of an answer, or its text."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            content = answer.read().decode()
            kind = answer.headers["content-type"]
            return answer.status, json.loads(content) if kind == "application/json" else content


def started(run_dir: Path, *options: str) -> Served:
    command = [sys.executable, "-m", "tlx", "serve", str(run_dir), "--port", "0", "--json", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        pytest.fail(f"it did not start: {process.communicate()[1]}")
    return Served(process, int(json.loads(line)["address"].rpartition(":")[2]))


def form(content: bytes, filename: str = "photo.png", name: str = "photo") -> tuple[bytes, str]:
    """A form with a file, and its content type."""
    head = f'--xyz\r\nContent-Disposition: form-data; name="{name}"; filename="{filename}"\r\n\r\n'
    return head.encode() + content + b"\r\n--xyz--\r\n", "multipart/form-data; boundary=xyz"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits as photos; their classes are names that are hard to show."""
    root = tmp_path_factory.mktemp("served")
    for part, images in load_digits().items():
        for i in range(min(60, len(images))):
            path = root / part / NAMES[images.labels[i]] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            images.open(i).resize((20 + i % 7, 24)).save(path)
    return root


@pytest.fixture(scope="module")
def run_dir(photos: Path) -> Path:
    return tlx.run(**FIELDS, data=str(photos), out=str(photos / "run")).run_dir


@pytest.fixture(scope="module")
def served(run_dir: Path) -> Iterator[Served]:
    server = started(run_dir)
    yield server
    alive = server.process.poll()
    server.process.kill()
    out, err = server.process.communicate()
    assert (alive, out) == (None, "")
    assert not re.search("Traceback|tlx: |boundary", err), err  # Pillow warns of damaged EXIF


@pytest.fixture(scope="module")
def some(photos: Path) -> list[Path]:
    return sorted((photos / "test").rglob("*.png"))[::5]


def test_answers_are_those_of_predict_also_when_many_ask_at_once(
    served: Served, run_dir: Path, some: list[Path]
) -> None:
    expected = tlx.predict(run_dir, some)
    bodies: list[tuple[Any, dict[str, str]]] = []
    for number, path in enumerate(some):
        content, kind = form(path.read_bytes(), EVIL)
        bodies.append((content, {"content_type": kind}) if number % 2 else (path.read_bytes(), {}))
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda one: served.ask("/predict", one[0], **one[1]), bodies * 3))
    assert [status for status, _ in answers] == [200] * 3 * len(some)
    for number, (_, answer) in enumerate(answers):
        assert answer.pop("unknown") is False
        assert _near(answer, expected[number % len(some)])


def _near(answer: Any, expected: Any) -> bool:
    """Equal but for what a batch of another size does to the last digits."""
    same = [entry["class"] for entry in answer["top"]] == [entry["class"] for entry in expected["top"]]
    return same and answer["probability"] == pytest.approx(expected["probability"], rel=1e-6)


def test_explanations_are_those_of_explain(served: Served, run_dir: Path, some: list[Path]) -> None:
    (one,) = tlx.explain(run_dir, some[0], class_name=NAMES[1])
    status, answer = served.ask("/explain?class=%E7%8C%AB%20%26%20%27cats%27", some[0].read_bytes())
    assert status == 200 and answer["class"] == NAMES[1] and answer["size"] == 8
    assert answer["probability"] == pytest.approx(one.probability, rel=1e-6)
    assert answer["flat"] is one.flat and answer["peak"] == (None if one.peak is None else [*one.peak])
    image = Image.open(io.BytesIO(base64.b64decode(answer["image"].removeprefix("data:image/png;base64,"))))
    assert one.image is not None and (np.asarray(image) == one.image).all()
    status, answer = served.ask("/explain", some[0].read_bytes())
    assert status == 200 and answer["class"] == one.predicted and answer["overlay"].startswith("data:image/png;base64,")


def test_it_listens_on_the_loopback_interface_only(served: Served) -> None:
    lines = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    ours = [line[1].partition(":")[0] for line in lines if line[1].endswith(f":{served.port:04X}") and line[3] == "0A"]
    assert ours == ["0100007F"] and f":{served.port:04X} " not in Path("/proc/net/tcp6").read_text()


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "127.0.0.1.evil.example"},
        {"host": "localhost.evil.example:80"},
        {"host": "evil@127.0.0.1"},
        {"host": "192.168.0.1"},
        {"host": ""},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:1"},
        {"origin": "https://127.0.0.1"},
        {"host": "localhost", "origin": "http://127.0.0.1"},
    ],
)
@pytest.mark.parametrize(("method", "path"), [("GET", "/"), ("POST", "/predict")])
def test_what_another_site_made_a_browser_send_is_refused(
    headers: dict[str, str], method: str, path: str, served: Served, some: list[Path]
) -> None:
    status, answer = served.ask(path, some[0].read_bytes() if method == "POST" else None, method, **headers)
    assert status == 403 and answer["error"].startswith("this server answers only") and len(answer) == 1


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:9000", "LOCALHOST:1", "[::1]:8000"])
def test_its_own_page_is_answered_through_any_forwarded_port(host: str, served: Served, some: list[Path]) -> None:
    assert served.ask("/predict", some[0].read_bytes(), host=host, origin=f"http://{host}")[0] == 200


TWO = form(b"x")[0].removesuffix(b"--xyz--\r\n") + form(b"y", name="other")[0]


@pytest.mark.parametrize(
    ("path", "body", "kind", "status", "said"),
    [
        ("/predict", b"", "", 400, "there is no photo; send one as the body"),
        ("/predict", form(b"")[0], form(b"")[1], 400, "there is no photo"),
        ("/predict", b"--xyz--\r\n", "multipart/form-data; boundary=xyz", 400, "there is no photo"),
        ("/predict", b"photo", "multipart/form-data", 400, "the form cannot be read"),
        ("/predict", b"photo", "multipart/form-data; boundary=xyz", 400, "the form cannot be read"),
        ("/predict", TWO, "multipart/form-data; boundary=xyz", 400, "the form cannot be read: Too many files"),
        (
            "/predict",
            b"<b>no photo</b>",
            "image/png",
            415,
            "the photo cannot be decoded as an image: it is none of JPEG",
        ),
        ("/predict", BOMBS["SVG"], "image/svg+xml", 415, "the photo cannot be decoded"),
        ("/predict", SEEDS["PNG RGB"][:90], "image/png", 415, "the photo cannot be decoded"),
        (
            "/predict",
            BOMBS["TIFF of 60,000 x 60,000"],
            "",
            413,
            "the photo has .* pixels, more than max_pixels=128000000",
        ),
        ("/explain?class=nobody", SEEDS["PNG RGB"], "", 400, "The run has no class 'nobody'"),
        ("/nowhere", b"x", "", 404, "POST /nowhere: Not Found; expected GET /, GET /run, POST /predict"),
        ("/run", b"x", "", 405, "POST /run: Method Not Allowed"),
    ],
)
def test_a_mistake_is_one_sentence(path: str, body: bytes, kind: str, status: int, said: str, served: Served) -> None:
    actual, answer = served.ask(path, body, content_type=kind)
    assert actual == status and [*answer] == ["error"] and re.match(said, answer["error"])


def test_photos_that_ask_for_more_than_they_hold_do_no_harm(served: Served) -> None:
    for name, content in BOMBS.items():
        status, answer = served.ask("/predict", content)
        assert status in (200, 400, 413, 415), name
        assert status == 200 or (answer["error"].isprintable() and "\n" not in answer["error"]), name
    assert served.ask("/predict", SEEDS["JPEG turned"])[0] == 200


def test_an_upload_that_is_too_large_is_refused_before_it_has_arrived(served: Served) -> None:
    def answer_to(*parts: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", served.port), timeout=30) as connection:
            connection.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\n" + parts[0])
            with contextlib.suppress(OSError):  # it hangs up in the midst of it
                for part in parts[1:]:
                    connection.sendall(part)
            answer = b""
            with contextlib.suppress(OSError):
                while not answer.endswith(b"}"):
                    if not (more := connection.recv(65536)):
                        break
                    answer += more
            return answer

    said = b"the photo has more than 32 MB; shrink it"
    answer = answer_to(b"Content-Length: %d\r\n\r\n" % (MAX_BYTES + 1))
    assert answer.startswith(b"HTTP/1.1 413 ") and said in answer
    chunk = b"100000\r\n" + bytes(2**20) + b"\r\n"
    answer = answer_to(b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * (MAX_BYTES // 2**20 + 1))
    assert b" 413 " in answer and said in answer


def test_the_page_allows_nothing_from_elsewhere(served: Served) -> None:
    connection = HTTPConnection("127.0.0.1", served.port, timeout=60)
    with contextlib.closing(connection):
        connection.request("GET", "/")
        answer = connection.getresponse()
        page = answer.read().decode()
    policy = answer.headers["content-security-policy"]
    nonces = {*re.findall(r"nonce-([\w-]+)", policy)}
    assert len(nonces) == 1 and policy.startswith("default-src 'none'; ") and "unsafe" not in policy
    assert answer.headers["x-frame-options"] == "DENY" and answer.headers["x-content-type-options"] == "nosniff"
    assert not re.findall(r"(?:src|href)=(?!\"data:)", page) and "{{" not in page
    status, facts = served.ask("/run", method="GET")
    expected = {"run": "run", "model": "tiny-mlp", "backend": "loopback", "classes": 10, "note": ""}
    assert (status, facts) == (200, expected)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_as_any_command(number: signal.Signals, run_dir: Path) -> None:
    server = started(run_dir)
    with socket.create_connection(("127.0.0.1", server.port)) as waiting:  # a connection that asks nothing
        waiting.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n")
        server.process.send_signal(number)
        _, err = server.process.communicate(timeout=30)
    again = f"tlx: interrupted. Start again with: tlx serve {run_dir} --port 0 --json"
    assert (server.process.returncode, err.strip()) == (128 + number, again)


def test_a_port_that_is_taken_or_none_is_said(run_dir: Path, served: Served) -> None:
    async def within() -> None:
        tlx.serve(run_dir)

    with ThreadPoolExecutor(1) as thread:  # where no loop of a browser runs
        with pytest.raises(
            TlxError, match=rf"Cannot listen on port {served.port}: another program uses it\. Fix: use --port 0"
        ):
            thread.submit(tlx.serve, run_dir, port=served.port).result()
        for port in (-1, 65536, True, "x"):
            with pytest.raises(TlxError, match="expected 0 to 65535"):
                thread.submit(tlx.serve, run_dir, port=port).result()  # type: ignore[arg-type]
        with pytest.raises(TlxError, match="one runs here already, as in a notebook"):
            thread.submit(asyncio.run, within()).result()


def test_it_says_unknown_where_predict_does(tmp_path: Path, some: list[Path]) -> None:
    run = tlx.run(**{**ON_DIGITS, "limit_train": 400, "epochs": 12, "quiet": True}, out=str(tmp_path / "run")).run_dir
    service = Service(run, None, 0.3, False)
    rows = tlx.predict(run, some, reject=0.3, quiet=True)
    answers = [service.predict(path.read_bytes()) for path in some]
    assert [answer["class"] for answer in answers] == [row["class"] for row in rows]
    assert [answer["unknown"] for answer in answers] == [row["class"] is None for row in rows]
    assert {answer["unknown"] for answer in answers} == {True, False}
    assert service.facts()["note"].startswith("answers need a probability above")
    with pytest.raises(TlxError, match="reject is 2; expected the part of answers"):
        Service(run, None, 2, False)


def test_a_run_that_has_no_map_predicts_all_the_same(tmp_path: Path, some: list[Path]) -> None:
    fields = {**ON_DIGITS, "strategy": "knn", "lr": None, "quiet": True}
    service = Service(tlx.run(**fields, out=str(tmp_path / "run")).run_dir, None, None, False)
    assert service.predict(some[0].read_bytes())["class"] in "0123456789"
    with pytest.raises(TlxError, match="of strategy knn"):
        service.explain(some[0].read_bytes())


@pytest.fixture
def page(browser: Browser, served: Served, request: pytest.FixtureRequest) -> Iterator[Page]:
    """The page, in a window of the width that the test asks for; it may complain of nothing."""
    values: Any = getattr(request, "param", (420, "light"))
    width, scheme = values
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(dialog.message))
    page.goto(served.address)
    yield page
    assert not [text for text in complaints if "status of 4" not in text] and page.title() == "run - tlx"
    context.close()


def shown(page: Page) -> list[str]:
    return page.locator("#classes .name").all_text_contents()


@pytest.mark.parametrize("page", [(420, "light"), (1400, "dark")], indirect=True)
def test_a_photo_that_is_chosen_is_classified_and_explained(page: Page, run_dir: Path, some: list[Path]) -> None:
    (row,) = tlx.predict(run_dir, some[0])
    page.set_input_files("#file", {"name": EVIL, "mimeType": "image/png", "buffer": some[0].read_bytes()})
    page.wait_for_selector("#explanation:not([hidden]) img[src^=data]")
    assert shown(page) == [entry["class"] for entry in row["top"]] and page.locator("#status").inner_text() == EVIL
    widths = page.locator("#classes .fill").evaluate_all("fills => fills.map(one => parseFloat(one.style.width))")
    assert widths == pytest.approx([100 * entry["probability"] for entry in row["top"]], abs=0.01)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.locator("#overlay").evaluate("image => image.complete && image.naturalWidth") == 8
    light = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert light is (page.viewport_size == {"width": 420, "height": 900})


def test_another_class_is_explained_by_the_keyboard_alone(page: Page, some: list[Path]) -> None:
    page.set_input_files("#file", some[0])
    page.wait_for_selector("#explanation:not([hidden])")
    page.locator("#file").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    second = shown(page)[1]
    page.wait_for_selector("#classes li:nth-child(2) button[aria-pressed=true]")
    page.locator("#words", has_text=f" {second}").wait_for()


def test_a_photo_is_dropped_and_a_file_that_is_none_is_said(page: Page, some: list[Path]) -> None:
    data = base64.b64encode(some[1].read_bytes()).decode()
    code = """data => { const files = new DataTransfer(), bytes = Uint8Array.from(atob(data), one => one.charCodeAt(0));
        files.items.add(new File([bytes], "dropped.png")); return files; }"""
    page.dispatch_event("#drop", "drop", {"dataTransfer": page.evaluate_handle(code, data)})
    page.wait_for_selector("#explanation:not([hidden])")
    assert page.locator("#status").inner_text() == "dropped.png"
    page.set_input_files("#file", {"name": "no.png", "mimeType": "image/png", "buffer": b"<b>no photo</b>"})
    page.wait_for_selector("#wrong:not(:empty)")
    assert page.locator("#wrong").inner_text().startswith("the photo cannot be decoded as an image")
    assert not page.locator("#result").is_visible()


@pytest.mark.needs("torch", "oneflow")
@pytest.mark.parametrize("backend", [pytest.param("torch", marks=pytest.mark.thorough), "oneflow"])
def test_runs_of_frameworks_are_served_from_a_thread(backend: str, tmp_path: Path, some: list[Path]) -> None:
    fields = {
        **FIELDS,
        "model": "shufflenet_v2_x0_5",
        "backend": backend,
        "image_size": 64,
        "epochs": 1,
        "data": "digits",
    }
    run = tlx.run(**{**fields, "limit_train": 20, "limit_test": 10, "lr": 0.001}, out=str(tmp_path / "run")).run_dir
    service = Service(run, None, None, False)
    with ThreadPoolExecutor(4) as pool:
        answers = list(
            pool.map(lambda path: (service.predict(path.read_bytes()), service.explain(path.read_bytes())), some)
        )
    rows = tlx.predict(run, some)
    for (predicted, explained), row in zip(answers, rows, strict=True):
        assert _near(predicted, row) and explained["class"] == row["class"] and explained["layer"] == "conv5"


def test_what_is_not_installed_is_said_with_the_extra(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(TlxError, match=r"needs uvicorn, which is not installed\. Fix: pip install \"tlx\[serve\]\""):
        tlx.serve(run_dir)


def test_the_command_says_where_it_is(run_dir: Path) -> None:
    command = [sys.executable, "-m", "tlx", "serve", str(run_dir), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert re.fullmatch(r".*/run at http://127\.0\.0\.1:\d+ \(Ctrl-C ends it\)\n", process.stdout.readline())
        os.kill(process.pid, signal.SIGTERM)
