"""Data at an address, and archives: kept in the cache, checked, unpacked once, and read as what they hold."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tlx.data.sources.folder import is_litter
from tlx.data.sources.kept import RECORD, Record, facts_of, filled, home_of, safe
from tlx.data.sources.source import Contents, Kind
from tlx.data.sources.unpack import SUFFIXES, first_bytes, unpack
from tlx.download import HASHES, fetch, hash_file
from tlx.errors import DataError, closest

READABLE = (".csv", ".tsv", ".npz", ".parquet")  # files that are data themselves
CONTENT = "content"  # the folder of what was unpacked
DIGITS = {name: hashlib.new(name, usedforsecurity=False).digest_size * 2 for name in HASHES}


def from_address(address: str, root: Path | None = None) -> Contents:
    """What lies at an address: an archive or a file, downloaded once and checked against the hash in its fragment.

    The address ends in ``#sha256=...``, ``#sha1=...`` or ``#md5=...``. Without one, a note says the SHA-256 of what
    was downloaded, so that it can be pinned.

    Raises:
        DataError: the address is malformed, cannot be reached, or holds something else.
    """
    url, algorithm, digest = _parse(address)
    name = unquote(Path(urlsplit(url).path).name) or "data"
    home = home_of(_stem(name), url)

    def wanted(record: Record) -> bool:
        return not digest or record.get(algorithm) == digest

    record = filled(home, wanted, lambda: _download(url, home, name, algorithm, digest))
    notes = list(record["notes"])
    if not digest:
        notes.append(f"the address has no hash; to pin what was downloaded, add to it: #sha256={record['sha256']}")
    path = home / record["content"]
    return Contents(inside(path) if path.is_dir() else path, _stem(name), notes)


def from_archive(file: Path, root: Path | None = None) -> Contents:
    """What an archive on this machine holds, unpacked once into the cache; again where the archive has changed."""
    version = facts_of(file)
    home = home_of(_stem(file.name), str(file.resolve()))

    def fill() -> Record:
        (home / RECORD).unlink(missing_ok=True)
        notes = unpack(file, home / CONTENT)
        return {"archive": str(file.resolve()), "version": version, "content": CONTENT, "notes": notes}

    record = filled(home, lambda record: record.get("version") == version, fill)
    return Contents(inside(home / CONTENT), _stem(file.name), list(record["notes"]))


def inside(folder: Path) -> Path:
    """Return what an archive holds: its one file of data where it has no folders, or the folder that holds more.

    Folders that hold nothing but one folder, which archives often wrap around the data, are entered; but not so far
    that photos would lose the folder that names their class.
    """
    entries = [entry for entry in folder.iterdir() if not is_litter(entry.name)]
    folders = [entry for entry in entries if entry.is_dir()]
    files = [entry for entry in entries if entry.suffix.lower() in READABLE and entry.is_file()]
    if len(files) == 1 and not folders:
        return files[0]
    if len(entries) == 1 and len(folders) == 1:
        within = folders[0].iterdir()
        if any(entry.is_dir() or entry.suffix.lower() in (*READABLE, ".tar") for entry in within):
            return inside(folders[0])
    return folder


def _parse(address: str) -> tuple[str, str, str]:
    """Return the URL, and the algorithm and the hex digits of its hash, both "" where there is none."""
    if not address.startswith(("https://", "http://")):
        raise DataError(
            f"data={address!r}: only https:// and http:// addresses are downloaded",
            fix="download it by other means, and pass the path of the file or folder",
        )
    url, _, fragment = address.partition("#")
    try:
        host = urlsplit(url).hostname
    except ValueError:  # such as of a bracket that nothing closes
        host = None
    if not host:
        raise DataError(f"data={address!r} names no server", fix="pass an address such as https://host/photos.zip")
    if not fragment:
        return url, "", ""
    algorithm, _, digest = fragment.partition("=")
    digest = digest.strip().lower()
    if algorithm not in HASHES:
        raise DataError(f"data={address!r}: unknown hash {algorithm!r}.{closest(algorithm, HASHES)}")
    if not re.fullmatch(rf"[0-9a-f]{{{DIGITS[algorithm]}}}", digest):
        raise DataError(
            f"data={address!r}: {HASHES[algorithm]} has {DIGITS[algorithm]} hex digits, got {digest!r}",
            fix="copy the whole hash, or leave #... out, and tlx says the hash of what it finds",
        )
    return url, algorithm, digest


def _download(url: str, home: Path, name: str, algorithm: str, digest: str) -> Record:
    """Download, unpack if it is an archive, and write down what it was. What was there before is kept until then."""
    loaded = home / "download" / safe(name)
    try:
        fetch(url, loaded, **({algorithm: digest} if digest else {}))  # type: ignore[arg-type]
    except DataError as error:
        fix = "check the address and the network, or download it by other means and pass the path of the file"
        if "expected" in error.problem:
            fix = "if the new file is what you want, put its hash into the address"
        raise DataError(error.problem.rstrip("."), fix=error.fix or fix) from error
    record: Record = {"url": url, "bytes": loaded.stat().st_size, "notes": []}
    record.update({name: hash_file(loaded, name) for name in HASHES})
    try:
        suffix = _suffix(loaded, url)
        (home / RECORD).unlink(missing_ok=True)
        if suffix in SUFFIXES and not _is_shard(loaded, suffix):
            record["content"], record["notes"] = CONTENT, unpack(loaded, home / CONTENT)
        else:
            record["content"] = safe(_stem(name)) + suffix
            os.replace(loaded, home / record["content"])
    except DataError as error:
        raise DataError(error.problem.replace(str(loaded), url).rstrip("."), fix=error.fix) from error
    finally:
        shutil.rmtree(loaded.parent)
    return record


def _suffix(file: Path, url: str) -> str:
    """Tell what a download is, by its first bytes rather than by its address, which may not say."""
    start = first_bytes(file, 512)
    if start.startswith(b"PK"):
        import zipfile

        try:
            with zipfile.ZipFile(file) as archive:
                return ".npz" if all(name.endswith(".npy") for name in archive.namelist()) else ".zip"
        except Exception as error:  # zipfile raises a dozen kinds on damaged archives
            raise DataError(f"{url} is a damaged zip archive: {error}.") from error
    if start.startswith(b"PAR1"):
        return ".parquet"
    for magic, suffix in ((b"\x1f\x8b", ".tar.gz"), (b"\xfd7zXZ\0", ".tar.xz"), (b"BZh", ".tar.bz2")):
        if start.startswith(magic):
            return suffix
    if start[257:262] == b"ustar" or urlsplit(url).path.lower().endswith(".tar"):
        return ".tar"
    named = Path(urlsplit(url).path).suffix.lower()
    page = re.match(rb"\s*<(!doctype|html)", start, re.IGNORECASE)
    if page or named not in (".csv", ".tsv"):
        what = "a web page" if page else "no archive and none of " + ", ".join(READABLE)
        raise DataError(f"{url} is {what}", fix="pass the address of the file itself")
    return named


def _is_shard(file: Path, suffix: str) -> bool:
    from tlx.data.sources.webdataset import is_shard

    return suffix == ".tar" and is_shard(file)


def _stem(name: str) -> str:
    """Return a file's name without what says its format."""
    low = name.lower()
    suffix = max((s for s in (*SUFFIXES, *READABLE) if low.endswith(s)), key=len, default="")
    return name[: len(name) - len(suffix)] or "data"


ADDRESS = Kind(
    name="address",
    help="the https:// address of any of these, or of an archive",
    read=from_address,
    recognises=lambda candidate: isinstance(candidate, str),
)
ARCHIVE = Kind(name="archive", help="a .zip or .tar archive of any of these", read=from_archive, suffix=SUFFIXES)
