"""Downloads that resume, are checked against a hash, and never replace a good file with a bad one; and their cache.

What killed processes leave half-written in the cache has a name that ends in .tmp, or in .part for a download that the
next call continues. `clear_leftovers` removes it once it is old.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tlx.errors import DataError, DataNotFound, printable
from tlx.streams import stderr

CHUNK = 1 << 18
TIMEOUT = 30  # seconds without a byte
SLOWEST, SLOW = 100, 120  # bytes a second, on average over so many seconds: a server that drips on holds us for ever
UNANNOUNCED = 2**33  # bytes from a server that does not say how many they are: it may send for ever
DAY = 24 * 60 * 60  # seconds
ANOTHER_CACHE = "set TLX_CACHE to a folder that can be written, with enough room"
HASHES = {"sha256": "SHA-256", "sha1": "SHA-1", "md5": "MD5"}  # by which a download may be checked
Advance = Callable[[int, int | None], None]  # bytes so far, bytes in all


def cache_folder() -> Path:
    """Where downloads live: TLX_CACHE, or where that is not set ~/.cache/tlx.

    Raises:
        DataNotFound: there is no home folder. It is an OSError too, for those who can do without the cache.
    """
    try:
        return Path(os.environ.get("TLX_CACHE") or "~/.cache/tlx").expanduser()
    except RuntimeError as error:
        raise DataNotFound("there is no home folder that the cache could be in", fix=ANOTHER_CACHE) from error


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold a file of the cache against other processes while the block runs; it is gone afterwards.

    Raises:
        DataError: the cache cannot be written.
    """
    from filelock import FileLock  # not at the top: `import tlx` shall be quick

    lock = FileLock(file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise unwritable(file.parent, error) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            file.unlink()
        lock.release()


def unwritable(folder: Path, error: OSError) -> DataError:
    """Return the error for a cache that is needed and cannot be written."""
    return DataError(f"the cache {folder} cannot be written: {error.strerror or error}", fix=ANOTHER_CACHE)


def clear_leftovers() -> None:
    """Remove what killed processes left half-written in the cache: temporary files after a day, downloads after a week.

    What a living process writes is younger, or its lock is held.
    """
    with contextlib.suppress(OSError):
        now = time.time()
        for path, lock, days in list(_leftovers(cache_folder())):
            with contextlib.suppress(OSError):
                if now - path.stat().st_mtime > days * DAY:
                    _remove(path, lock)


def _leftovers(cache: Path) -> Iterator[tuple[Path, Path | None, int]]:
    """Yield the temporary files and folders that tlx makes in a cache, the lock of each, and the days that it may stay.

    A user may have set TLX_CACHE to a folder that holds more; no other names are touched.
    """
    for kind in ("features", "trials", "shards"):
        yield from ((path, None, 1) for path in (cache / kind).glob(".*.tmp"))
    for path in (*(cache / "weights").glob("*.pth.part"), *(cache / "data").glob("cifar-10-*.part")):
        yield path, _lock_of(path.with_suffix("")), 7
    yield from ((path, None, 1) for path in (cache / "data").glob(".cifar-10-*.tmp"))
    for lock in (cache / "data").glob("*/.lock"):  # of what an address or an archive holds
        yield from ((path, lock, 1) for path in lock.parent.glob(".*.tmp"))
        yield from ((path, lock, 7) for path in lock.parent.glob("download"))


def _remove(path: Path, lock: Path | None) -> None:
    from filelock import FileLock

    with FileLock(lock, timeout=0) if lock is not None else contextlib.nullcontext():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    if lock is not None and lock.name != ".lock":
        lock.unlink()


def _lock_of(dest: Path) -> Path:
    return dest.with_name(f".{dest.name}.lock")


def fetch(
    url: str,
    dest: Path,
    *,
    sha256: str | None = None,
    sha256_prefix: str | None = None,
    sha1: str | None = None,
    md5: str | None = None,
    progress: bool = True,
) -> Path:
    """Download `url` to `dest` unless it is there with the right hash, and return `dest`.

    One process downloads it, and the others wait.
    What has arrived is kept in ``<dest>.part`` and continued by the next call; `dest` appears only when it is whole and
    its hash is the one that was given, or begins with `sha256_prefix` (the eight digits in the names of torchvision's
    checkpoints). Without a hash, any file that is there will do. Progress goes to stderr.

    Raises:
        DataError: the download failed; the text names the URL. After a wrong hash the partial file is deleted.
    """
    hashes = {"sha256": sha256 or sha256_prefix, "sha1": sha1, "md5": md5}
    algorithm, expected = next(((name, text.lower()) for name, text in hashes.items() if text), ("sha256", ""))
    if not _is_there(dest, algorithm, expected):
        with locked(_lock_of(dest)):
            if not _is_there(dest, algorithm, expected):
                _fetch(url, dest, algorithm, expected, progress)
    return dest


def _is_there(dest: Path, algorithm: str, expected: str) -> bool:
    return dest.is_file() and (not expected or hash_file(dest, algorithm).startswith(expected))


def _fetch(url: str, dest: Path, algorithm: str, expected: str, progress: bool) -> None:
    import http.client
    import urllib.error

    part = dest.with_name(dest.name + ".part")
    # Without a hash, only the server's word for it tells that what an earlier call began is still the same file.
    version = None if expected else part.with_name(part.name + "-version")
    try:
        if version is not None and not version.is_file():
            part.unlink(missing_ok=True)
        with _bar(dest.name, progress) as advance:
            before = -1
            # A dropped connection is continued for as long as each attempt brings something.
            while not _transfer(url, part, version, advance):
                if (size := part.stat().st_size) <= before:
                    raise DataError(
                        f"{url}: the transfer stopped after {size} bytes", fix="run again to continue from there"
                    )
                before = size
        if expected and not (actual := hash_file(part, algorithm)).startswith(expected):
            part.unlink()
            raise DataError(f"{url}: expected {HASHES[algorithm]} {expected}, got {actual}; the download was deleted.")
        os.replace(part, dest)
        if version is not None:
            version.unlink(missing_ok=True)
    except DataError:
        raise
    except urllib.error.HTTPError as error:
        error.close()
        raise DataError(f"{url}: the server answered {error.code} {error.reason}.") from error
    except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ValueError) as error:
        raise DataError(f"{url} cannot be reached: {getattr(error, 'reason', error)}.") from error
    except OSError as error:
        raise DataError(f"{url} cannot be saved as {dest}: {error.strerror or error}", fix=ANOTHER_CACHE) from error


def hash_file(path: Path, algorithm: str = "sha256") -> str:
    """Hash of a file, in hex."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _transfer(url: str, part: Path, version: Path | None, advance: Advance) -> bool:
    """Continue `part`; True when it is whole, False when the connection dropped.

    A file beside it keeps the `version` that the server said it has (RFC 9110, section 13.1.5); None: a hash decides.
    """
    import http.client  # not at the top: few processes download, and these three take longer than the rest of tlx.data
    import urllib.error
    import urllib.request

    if not url.startswith(("https://", "http://")):
        raise ValueError("only http and https are downloaded")
    done = part.stat().st_size if part.is_file() else 0
    headers = {"Range": f"bytes={done}-"} if done else {}
    if done and version is not None and version.is_file():
        headers["If-Range"] = version.read_text(encoding="latin-1")  # as headers are
    request = urllib.request.Request(url, headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not done:
            raise
        error.close()
        # Nothing lies beyond what we have: it is either all there is, which the hash decides, or too long.
        if error.headers.get("Content-Range") == f"bytes */{done}":
            return True
        part.unlink()
        return _transfer(url, part, version, advance)
    with response:
        continued = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {done}-")
        if not response.url.startswith(("https://", "http://")):
            raise ValueError(f"it leads to {response.url}; only http and https are downloaded")
        if response.status == 206 and not continued:
            if not done:
                raise ValueError("the server sends a part that was not asked for")
            part.unlink()
            return _transfer(url, part, version, advance)
        done = done if continued else 0
        if version is not None and not continued:
            _keep_version(version, response.headers.get("ETag") or response.headers.get("Last-Modified") or "")
        length = response.headers.get("Content-Length")
        total = None if length is None else done + int(length)
        if total is not None and total - done > (free := shutil.disk_usage(part.parent).free):
            raise DataError(f"{url} has {total} bytes, of which {free} more fit on the disk", fix=ANOTHER_CACHE)
        with part.open("ab" if continued else "wb") as file:
            advance(done, total)
            since, before = time.monotonic(), done
            try:
                while chunk := response.read1(CHUNK):  # what is there: `read` waits for all
                    file.write(chunk)
                    advance(done := done + len(chunk), total)
                    if total is None and done > UNANNOUNCED:
                        raise DataError(f"{url} has more than {UNANNOUNCED} bytes, and does not say how many")
                    if (now := time.monotonic()) - since > SLOW:
                        if done - before < SLOWEST * SLOW:
                            raise DataError(f"{url} sends less than {SLOWEST} bytes a second", fix="run again later")
                        since, before = now, done
            except http.client.IncompleteRead as error:
                file.write(error.partial)
                return False
            except (TimeoutError, ConnectionError):
                return False
        return total is None or done >= total


def _keep_version(file: Path, text: str) -> None:
    if text and not text.startswith("W/"):  # a weak one does not vouch for each byte
        file.write_text(text, encoding="latin-1")
    else:
        file.unlink(missing_ok=True)


@contextlib.contextmanager
def _bar(name: str, shown: bool) -> Iterator[Advance]:
    if not shown:
        yield lambda done, total: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    from tlx.console import Console, bar_text

    columns = (bar_text("description"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=stderr())) as bar:
        task = bar.add_task(printable(name), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
