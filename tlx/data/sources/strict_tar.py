"""Members of a tar of a stranger: `tarfile` alone passes over damage, and can be led astray for ever."""

from __future__ import annotations

import re
import tarfile
from typing import Any

HEADER = 2**16  # bytes of a long name or of a tar's own records, which are read into memory; a path has 4,096 at most
CHAIN = 8  # such headers before a member; the usual ones are a long name, a long link and a record of the times
_EXTENDED = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


class StrictMember(tarfile.TarInfo):
    """A member of a tar whose damage is an error. `tarfile` takes a damaged header for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> StrictMember:
        """Read a header block."""
        try:
            return super().frombuf(buf, encoding, errors)
        except (tarfile.TruncatedHeaderError, tarfile.InvalidHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(f"it is damaged or cut off ({error})") from error

    def _block(self, count: int) -> int:
        if count < 0:  # it would lead back to where the archive was read already (CVE-2025-8194)
            raise tarfile.ReadError(f"a member has {count} bytes")
        size: int = super()._block(count)  # type: ignore[misc]
        return size

    def _proc_member(self, archive: Any) -> Any:
        if self.type not in _EXTENDED:
            archive.chain = 0
            return super()._proc_member(archive)  # type: ignore[misc]
        # Each is held until the member comes, and records that hold for all that follow are held to the end.
        archive.chain = getattr(archive, "chain", 0) + 1
        held = getattr(archive, "held", 0) + self.size * (self.type == tarfile.XGLTYPE)
        archive.held = held
        if max(self.size, held) > HEADER or archive.chain > CHAIN:
            what = f"a header has {max(self.size, held)} bytes" if archive.chain <= CHAIN else "headers follow headers"
            raise tarfile.ReadError(f"{what}, suspiciously many")
        return super()._proc_member(archive)  # type: ignore[misc]

    def _proc_pax(self, archive: Any) -> Any:
        stream = archive.fileobj
        content = stream.read(self._block(self.size))
        if re.search(rb"\d{1000}", content):  # `tarfile` looks at each end of them from each beginning (CVE-2024-6232)
            raise tarfile.ReadError("a header has a number of more than 1000 digits")
        archive.fileobj = _Again(content, stream)
        try:
            return super()._proc_pax(archive)  # type: ignore[misc]
        finally:
            archive.fileobj = stream


class _Again:
    """A stream from which something was read already, which the next call of `read` returns."""

    def __init__(self, content: bytes, stream: Any) -> None:
        self._content, self._stream = content, stream

    def read(self, size: int) -> Any:
        """Return what was read already, or read on."""
        content, self._content = self._content, b""
        return content or self._stream.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
