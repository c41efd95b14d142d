"""Archives of strangers, unpacked so that nothing is written outside the folder and nothing is half-written."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, BinaryIO

from tlx.data.sources.folder import DEPTH, listed
from tlx.data.sources.strict_tar import StrictMember
from tlx.download import ANOTHER_CACHE
from tlx.errors import DataError, printable
from tlx.files import open_regular

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz", ".tbz2")
ENTRIES = 5_000_000  # ImageNet has 1.3 million photos; a bomb of empty files exhausts the inodes of a file system
RATIO, SUSPECT = 100, 2**28  # photos never shrink to a hundredth; from SUSPECT bytes on, that is taken for a bomb
LONGEST = 4096  # bytes of a path, as Linux has it; longer ones would only fill the memory
CHUNK = 2**20
ENDS = 100  # reads at the end of a tar; the usual number is two


def unpack(archive: Path, folder: Path) -> list[str]:
    """Unpack a zip or a tar, plain or compressed, into `folder`, which appears whole or not at all.

    Only files and folders are made. A link to a file of the archive becomes that file; one that leaves the folder is
    refused, as are absolute names, names with ``..``, devices, names that come twice, and archives that unpack to far
    more than photos do. What is there from an interrupted call is replaced. Not for two processes at once.

    Returns:
        Notes on what was left out.

    Raises:
        DataError: the archive is damaged or hostile; the text names it.
    """
    work = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(work, ignore_errors=True)
    try:
        work.mkdir(parents=True)
        with ExitStack() as stack:
            file = stack.enter_context(open_regular(archive))
            writer = _Writer(work, max(SUSPECT, RATIO * os.fstat(file.fileno()).st_size))
            start = file.read(8)
            file.seek(0)
            if archive.name.lower().endswith(".zip") or start.startswith(b"PK"):
                _unpack_zip(stack.enter_context(zipfile.ZipFile(file)), writer)
            else:
                _unpack_tar(stack.enter_context(_plain(file, start)), writer)
        notes = writer.finish()
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(work, folder)
        return notes
    except DataError as error:
        raise DataError(f"{archive} is refused as an archive of data: {error}.") from error
    except OSError as error:
        fix = ANOTHER_CACHE if error.errno else "download or pack it again"  # damage has no number
        raise DataError(
            f"{archive} cannot be unpacked into {folder.parent}: {str(error.strerror or error).rstrip('.')}", fix=fix
        ) from error
    except Exception as error:  # tarfile, zipfile and the decompressors raise a dozen kinds on damaged archives
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise DataError(f"{archive} cannot be unpacked: {reason}", fix="download or pack it again") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


class _Writer:
    """Writes members into a folder, and nowhere else."""

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self.limit, self._left = folder, limit, limit
        self._files: set[str] = set()
        self._links: dict[str, str] = {}
        self._entries = 0

    def name(self, raw: str) -> str:
        """Return a member's path below the folder; refuse what leads elsewhere."""
        self._entries += 1
        if self._entries > ENTRIES:
            raise DataError(f"it has more than {ENTRIES} entries")
        steps = raw.split("/")
        if raw.startswith("/") or ".." in steps or "\0" in raw or (raw[1:2] == ":" and raw[:1].isalpha()):
            raise DataError(f"{raw!r} would be written outside the folder")
        if len(raw.encode(errors="surrogatepass")) > LONGEST or len(steps) > DEPTH:
            raise DataError(
                f"the path {raw[:40]!r} ... has {len(raw)} letters and {len(steps)} steps, suspiciously many"
            )
        return "/".join(step for step in steps if step not in ("", "."))

    def make_folder(self, name: str) -> None:
        """Make a folder, which may be there."""
        (self._folder / name).mkdir(parents=True, exist_ok=True)

    def write(self, name: str, content: IO[bytes]) -> None:
        """Write a file, which may not be there."""
        self._check_new(name)
        self._files.add(name)
        with self._place(name).open("xb") as file:
            while chunk := content.read(min(CHUNK, self._left + 1)):
                self.count(len(chunk))
                file.write(chunk)

    def count(self, size: int) -> None:
        """Count bytes that were unpacked."""
        self._left -= size
        if self._left < 0:
            raise DataError(f"it unpacks to more than {self.limit} bytes, suspiciously many")

    def link(self, name: str, target: str) -> None:
        """Remember a link to a path below the folder: the file that it names may come later."""
        self._check_new(name)
        if len(target) > LONGEST:
            raise DataError(f"the link {name!r} leads to a path of {len(target)} letters, suspiciously many")
        target = os.path.normpath(target)
        if target.startswith(("/", "../")) or target == "..":
            raise DataError(f"{name!r} is a link to {target!r}, outside the folder")
        self._links[name] = target

    def finish(self) -> list[str]:
        """Make the links to files, and say what was left out."""
        lost = []
        for name in list(self._links):
            target = self._end(name)
            if target in self._files:
                os.link(self._folder / target, self._place(name))
            else:
                lost.append(name)
        if not self._files:
            raise DataError("it holds no file")
        return (
            [printable(f"left out of the archive because they lead to no file in it: {listed(lost)}")] if lost else []
        )

    def _end(self, name: str) -> str:
        """Follow links to what is none, or in a circle to "". All of the way then lead there: many take linear time."""
        way: dict[str, None] = {}
        while name in self._links and name not in way:
            way[name] = None
            name = self._links[name]
        end = "" if name in way else name
        self._links.update(dict.fromkeys(way, end))
        return end

    def _check_new(self, name: str) -> None:
        if not name or name in self._files or name in self._links:
            raise DataError(f"{name!r} is in it twice" if name else "a file in it has no name")

    def _place(self, name: str) -> Path:
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def first_bytes(file: Path, count: int) -> bytes:
    """Return the beginning of a file, which tells what it is."""
    with open_regular(file) as stream:
        return stream.read(count)


def _unpack_zip(archive: zipfile.ZipFile, writer: _Writer) -> None:
    for entry in archive.infolist():
        # Some programs of Windows write their own separator.
        name = writer.name(entry.filename.replace("\\", "/"))
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if entry.filename.endswith(("/", "\\")) or kind == stat.S_IFDIR:
            writer.make_folder(name)
        elif kind == stat.S_IFLNK:
            if entry.file_size > LONGEST:
                raise DataError(f"the link {name!r} has {entry.file_size} bytes, suspiciously many")
            writer.link(name, os.path.join(os.path.dirname(name), archive.read(entry).decode("utf-8", "replace")))
        elif kind in (0, stat.S_IFREG):
            with archive.open(entry) as content:
                writer.write(name, content)
        else:
            raise DataError(f"{name!r} is a device or a pipe")


class _Bounded:
    """The bytes of a tar, at most so many. `tarfile` skips what no file holds, and beyond the end, block by block."""

    def __init__(self, stream: IO[bytes], limit: int) -> None:
        self._stream, self._left, self._ends = stream, limit, 0

    def read(self, size: int) -> bytes:
        """Read on; raises `tarfile.ReadError` beyond the limit, or where the end was met again and again."""
        content = self._stream.read(size)
        self._left -= len(content)
        self._ends += not content
        if self._left < 0 or self._ends > ENDS:
            raise tarfile.ReadError("it is cut off" if self._ends > ENDS else "it holds too much that is no file")
        return content


def _unpack_tar(plain: IO[bytes], writer: _Writer) -> None:
    stream: Any = _Bounded(plain, 2 * writer.limit)  # headers and padding are no larger than the smallest files
    with tarfile.open(fileobj=stream, mode="r|", tarinfo=StrictMember) as archive:
        for member in archive:
            archive.members = []  # type: ignore[attr-defined]  # it would hold all of them, which are many
            name = writer.name(member.name)
            if member.isdir():
                writer.make_folder(name)
            elif member.issym():
                writer.link(name, os.path.join(os.path.dirname(name), member.linkname))
            elif member.islnk():
                writer.link(name, member.linkname)
            elif member.isfile():
                content = archive.extractfile(member)
                assert content is not None
                writer.write(name, content)
            else:
                raise DataError(f"{name!r} is a device or a pipe")
    while chunk := stream.read(CHUNK):  # the checksum of the whole stands at its end
        writer.count(len(chunk))


def _plain(archive: BinaryIO, start: bytes) -> IO[bytes]:
    """Return the bytes of a tar, decompressed according to the first ones of its file."""
    if start.startswith(b"\x1f\x8b"):
        return gzip.open(archive)  # type: ignore[return-value]
    if start.startswith(b"BZh"):
        return bz2.open(archive)
    if start.startswith(b"\xfd7zXZ\0"):
        return lzma.open(archive)
    return archive
