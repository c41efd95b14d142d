"""`tlx serve`: a page and JSON endpoints over a finished run, for a demo on this machine only.

It listens on the loopback interface, and refuses requests that a page from elsewhere made a browser send: those that
name another host, as after DNS rebinding, and those of another origin.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import re
import secrets
import signal
import socket
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlx.data.images import TooManyPixels
from tlx.errors import DataError, TlxError, as_html, printable
from tlx.runs.service import Service
from tlx.signals import handlers
from tlx.streams import tell

if TYPE_CHECKING:
    import uvicorn
    from starlette.requests import Request
    from starlette.responses import Response

LOOPBACK = "127.0.0.1"
PORT = 8000
HOSTS = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d{1,5})?", re.IGNORECASE)  # any port: one may be forwarded
MAX_BYTES = 32 * 2**20  # of a photo
AT_ONCE = 4  # uploads that are read at a time, so that memory is bounded
READ_SECONDS = 60.0  # for an upload to arrive
END_SECONDS = 3  # for answers that are under way when the server is asked to end
GUARDED = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Refused(Exception):
    """A request that is answered with a status and a sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


def serve(
    run_dir: str | Path,
    backend: str | None = None,
    *,
    port: int = PORT,
    reject: float | None = None,
    calibrated: bool = False,
    on_ready: Callable[[str], object] | None = None,
    model: Any = None,
    head: Any = None,
) -> None:
    """Serve a page and JSON endpoints over a finished run at 127.0.0.1 until a signal, such as Ctrl-C, ends it.

    `POST /predict` takes a photo, as the body or as the file of a form, and answers as `tlx.predict`; `POST /explain`
    answers as `tlx.explain`, with pictures. `docs/serve.md` shows both.

    Args:
        run_dir: a folder that `tlx run` wrote.
        backend: compute on this backend instead of the one that trained, as `tlx.predict` does.
        port: where to listen; 0: any that is free.
        reject: as of `tlx.predict`: the class is None, and `unknown` true, where the probability is too low.
        calibrated: as of `tlx.predict`.
        on_ready: is called with the address once requests are taken; default: print it.
        model: the module again, where the run's was a Python object.
        head: likewise.

    Raises:
        RunNotFound: there is no finished run in the folder.
        TlxError: what the server needs is not installed, the port is taken, or the run's validation part does not
            allow `reject` or `calibrated`.
    """
    try:
        import python_multipart  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise TlxError(
            f"tlx serve needs {error.name}, which is not installed", fix='pip install "tlx[serve]"'
        ) from error
    logging.getLogger("python_multipart").addHandler(logging.NullHandler())  # the answer says what is wrong with a form
    _check_no_loop()
    with _listening(port) as listener:
        service = Service(run_dir, backend, reject, calibrated, model=model, head=head)
        address = f"http://{LOOPBACK}:{listener.getsockname()[1]}"
        listener.listen()
        (on_ready or print)(address)
        options: dict[str, Any] = {
            "log_config": None,
            "log_level": "critical",
            "access_log": False,
            "server_header": False,
        }
        options |= {"lifespan": "off", "ws": "none", "http": "h11", "loop": "asyncio", "proxy_headers": False}
        config = uvicorn.Config(make_app(service), **options, timeout_graceful_shutdown=END_SECONDS)
        _run(uvicorn.Server(config), listener)


def _run(server: uvicorn.Server, listener: socket.socket) -> None:
    """Run a server until a signal arrives that is not ignored here; then end it, and let the signal go its way.

    By itself it would handle signals that were to be ignored. A second one ends it without answering what is under way.
    """
    arrived = list[int]()

    def note(number: int, frame: Any) -> None:
        server.should_exit, server.force_exit = True, bool(arrived)
        arrived.append(number)

    before = handlers()
    server.capture_signals = nullcontext  # type: ignore[method-assign, assignment]
    try:
        for number in before:
            signal.signal(number, note)
        server.run(sockets=[listener])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if arrived:
        signal.raise_signal(arrived[0])


def _check_no_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise TlxError(
        "serve runs a loop of its own, and one runs here already, as in a notebook; use a terminal: tlx serve"
    )


def _listening(port: int) -> socket.socket:
    """Return a socket that is bound to a port of the loopback interface."""
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= 65535:
        raise TlxError(f"port is {port!r}; expected 0 to 65535, 0 for any that is free")
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((LOOPBACK, port))
    except OSError as error:
        listener.close()
        taken = "another program uses it" if error.errno == errno.EADDRINUSE else error.strerror
        raise TlxError(f"Cannot listen on port {port}: {taken}", fix="use --port 0 for any that is free") from error
    return listener


class Guard:
    """Refuses what does not come from this machine's own page or program, and adds headers to each answer."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Take a request."""
        from starlette.datastructures import MutableHeaders

        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in GUARDED.items():
                    headers.setdefault(name, value)
            await send(message)

        refusal = _refusal(scope["headers"])
        await (self.app if refusal is None else _error(403, refusal))(scope, receive, guarded)


def _refusal(headers: list[tuple[bytes, bytes]]) -> str | None:
    """Say why a request is refused by its headers; None: it is not."""
    named = {name: [v.decode("latin-1") for n, v in headers if n == name] for name in (b"host", b"origin")}
    hosts, origins = named[b"host"], named[b"origin"]
    if len(hosts) != 1 or not HOSTS.fullmatch(hosts[0]):
        return f"this server answers only at {LOOPBACK} or localhost, and the request names another host"
    if any(origin.lower() != f"http://{hosts[0]}".lower() for origin in origins):
        return "this server answers only its own page and programs, and the request comes from the page of another site"
    return None


def _error(status: int, sentence: str) -> Response:
    from starlette.responses import JSONResponse

    return JSONResponse({"error": printable(sentence)}, status)


def make_app(service: Service) -> Any:
    """Return the ASGI application; one thread computes, and the others only wait."""
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.responses import HTMLResponse, JSONResponse
    from starlette.routing import Route

    worker = ThreadPoolExecutor(1, thread_name_prefix="tlx-serve")
    reading = asyncio.Semaphore(AT_ONCE)
    template = files("tlx.runs").joinpath("serve_page.html").read_text(encoding="utf-8")

    async def answer(request: Request, compute: Callable[[bytes], dict[str, Any]]) -> Response:
        try:
            async with reading:
                content = await _photo(request)
                loop = asyncio.get_running_loop()
                return JSONResponse(await loop.run_in_executor(worker, compute, content))
        except Refused as refused:
            return _error(refused.status, str(refused))
        except TooManyPixels as error:
            return _error(413, str(error))
        except DataError as error:
            return _error(415, str(error))
        except TlxError as error:
            return _error(400, str(error))
        except Exception as error:  # a defect; the server goes on
            tell(f"tlx: a request failed: {printable(f'{type(error).__name__}: {error}')}")
            return _error(500, "the server could not answer; its terminal says why")

    async def predict(request: Request) -> Response:
        return await answer(request, service.predict)

    async def explain(request: Request) -> Response:
        return await answer(request, partial(service.explain, class_name=request.query_params.get("class")))

    async def page(request: Request) -> Response:
        nonce = secrets.token_urlsafe(16)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data:; "
            "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        return HTMLResponse(
            _filled(template, {**service.facts(), "nonce": nonce}), headers={"Content-Security-Policy": policy}
        )

    async def facts(request: Request) -> Response:
        return JSONResponse(service.facts())

    async def unknown(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        sentence = "expected GET /, GET /run, POST /predict or POST /explain"
        return _error(error.status_code, f"{request.method} {request.url.path}: {error.detail}; {sentence}")

    routes = [
        Route("/", page, methods=["GET"]),
        Route("/run", facts, methods=["GET"]),
        Route("/predict", predict, methods=["POST"]),
        Route("/explain", explain, methods=["POST"]),
    ]
    return Starlette(routes=routes, middleware=[Middleware(Guard)], exception_handlers={HTTPException: unknown})


def _filled(template: str, facts: dict[str, Any]) -> str:
    """Fill in `{{name}}`; each value is escaped."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: as_html(facts[match[1]]), template)


async def _photo(request: Request) -> bytes:
    """Return the photo of a request: its body, or the file in its form.

    Raises:
        Refused: it is empty, too large, or no form.
    """
    from starlette.datastructures import UploadFile
    from starlette.formparsers import MultiPartException, MultiPartParser

    try:
        body = await asyncio.wait_for(_body(request), READ_SECONDS)
    except asyncio.TimeoutError:
        raise Refused(408, f"the photo did not arrive within {READ_SECONDS:.0f} seconds") from None
    content = body
    if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        try:
            form = await MultiPartParser(request.headers, _once(body), max_files=1, max_fields=8).parse()
        except (MultiPartException, KeyError, ValueError) as error:
            raise Refused(400, f"the form cannot be read: {error}") from error
        photos = [value for value in form.values() if isinstance(value, UploadFile)]
        content = await photos[0].read() if photos else b""
        await form.close()
    if not content:
        raise Refused(400, "there is no photo; send one as the body, or as the file of a form (multipart/form-data)")
    return content


async def _body(request: Request) -> bytes:
    from starlette.requests import ClientDisconnect

    limit = f"the photo has more than {MAX_BYTES // 2**20} MB; shrink it"
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > MAX_BYTES:
        raise Refused(413, limit)
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BYTES:
                raise Refused(413, limit)
    except ClientDisconnect:
        raise Refused(400, "the photo did not arrive") from None
    return bytes(body)


async def _once(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body
