"""The connection between the processes of a run: TCP, with the first process in the middle, and no pickle.

A frame is its kind, the number of the call that it belongs to, its length, and so many bytes. A thread of each process
reads, so it notices that another one has ended also while this one waits in a framework's own exchange of gradients.
"""

from __future__ import annotations

import os
import selectors
import socket
import struct
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue

from tlx.errors import Interrupted, ProcessesError, ProcessLostError
from tlx.processes.world import World
from tlx.streams import tell

PATIENCE = 1800.0  # seconds that one process may keep the others waiting; what gloo's collectives wait, too
GRACE = 10.0  # seconds in which a process must take notice that another was lost, before it is ended from within
NOTICE = 3.0  # seconds in which the end of another process explains what fails here
LINGER = 1.0  # seconds in which what was sent last may still be read
_HEADER = struct.Struct("!BQQ")
_DATA, _END, _BYE = 0, 1, 2
_CODE = struct.Struct("!B")  # the exit code before the text of an _END


class Star:
    """The channel of a run of several processes: the first one is connected with each of the others, and passes on."""

    def __init__(self, world: World, connections: Mapping[int, socket.socket], patience: float = PATIENCE) -> None:
        self.world = world
        self.ended: ProcessLostError | Interrupted | None = None  # why the run cannot go on: another process has ended
        self.speaks = world.rank == 0  # what ends the run is shown to the user once; by the second if the first is lost
        self._peers = {rank: _Peer(rank, connection) for rank, connection in connections.items()}
        self._patience = patience if world.rank == 0 else patience + NOTICE  # the first names whoever hangs
        self._calls = 0
        self._ended_at = self._closed_at = 0.0
        self._code = 2  # with which all end once one has ended
        self._wake, self._woken = socket.socketpair()
        self._reader = threading.Thread(target=self._read, name="tlx-processes", daemon=True)
        self._reader.start()

    def gather(self, part: bytes) -> list[bytes]:
        """Return what each process gives here, in the order of ranks; the same in all of them.

        Raises:
            ProcessLostError: a process has failed, has ended, or has kept the others waiting for too long.
            Interrupted: a signal has ended another process.
        """
        self._calls += 1
        if self.world.rank:
            self._send(self._peers[0], _DATA, [part])
            return _unpacked(memoryview(self._receive(self._peers[0])), self.world.size)
        parts = [part, *(bytes(self._receive(self._peers[rank])) for rank in range(1, self.world.size))]
        lengths = struct.pack(f"!{len(parts)}Q", *map(len, parts))
        for peer in self._peers.values():
            self._send(peer, _DATA, [lengths, *parts])
        return parts

    def end(self, code: int, text: str) -> None:
        """Tell the others why this process ends; none waits for it then."""
        for peer in self._peers.values():
            self._tell_end(peer, code, text)

    def ended_elsewhere(self) -> ProcessLostError | Interrupted | None:
        """Return why another process has ended, if one does so by now: it explains what failed here."""
        deadline = time.monotonic() + NOTICE
        while self.ended is None and time.monotonic() < deadline:
            time.sleep(0.02)
        return self.ended

    def close(self) -> None:
        """Close the connections; what the others do from here on concerns this process no more."""
        for peer in self._peers.values():
            with suppress(ProcessesError, Interrupted, OSError):
                self._send(peer, _BYE, [], seconds=LINGER)
                peer.connection.shutdown(socket.SHUT_WR)
        self._closed_at = time.monotonic()
        self._wake.send(b"x")
        self._reader.join()
        for connection in (self._wake, self._woken, *(peer.connection for peer in self._peers.values())):
            connection.close()

    def _send(self, peer: _Peer, kind: int, parts: Sequence[bytes], seconds: float | None = None) -> None:
        """Send a frame; a process that reads nothing for so many seconds is lost."""
        header = _HEADER.pack(kind, self._calls, sum(map(len, parts)))
        if not peer.sending.acquire(timeout=-1 if seconds is None else seconds):
            raise self._silent(peer)
        try:
            with selectors.DefaultSelector() as ready:
                ready.register(peer.connection, selectors.EVENT_WRITE)
                for part in (header, *parts):
                    left = memoryview(part)
                    while left:
                        if not ready.select(self._patience if seconds is None else seconds):
                            raise self._silent(peer)
                        left = left[peer.connection.send(left) :]
        except OSError:
            raise (self.ended_elsewhere() or self._lost(peer)) from None
        finally:
            peer.sending.release()

    def _receive(self, peer: _Peer) -> bytearray:
        """Wait for what a process sends to this call."""
        try:
            frame = peer.frames.get(timeout=self._patience)
        except Empty:
            raise self._silent(peer) from None
        if frame is None:
            peer.frames.put(None)
            raise self.ended or self._lost(peer)
        call, content = frame
        if call != self._calls:
            here = f"process {self.world.rank} is at {self._calls}"
            raise ProcessesError(
                f"{self._missed(peer)} is at its exchange {call}, and {here}: they do not do the same, which is a "
                "defect of tlx or of a backend"
            )
        return content

    def _missed(self, peer: _Peer) -> str:
        self.speaks = self.speaks or (self.world.rank == 1 and peer.rank == 0)  # the first cannot say that it is lost
        return f"process {peer.rank} (of 0 to {self.world.size - 1})"

    def _lost(self, peer: _Peer) -> ProcessLostError:
        return ProcessLostError(
            f"{self._missed(peer)} has ended without a word, as one does that is killed or finds no memory",
            fix="start the same command again: it goes on from the last save",
        )

    def _silent(self, peer: _Peer) -> ProcessLostError:
        return ProcessLostError(f"{self._missed(peer)} has not answered for {self._patience:.0f} s; it may hang")

    def _read(self) -> None:
        """Read whatever the others send, until the channel is closed; end the process if it does not notice an end."""
        with selectors.DefaultSelector() as ready:
            ready.register(self._woken, selectors.EVENT_READ)
            for peer in self._peers.values():
                ready.register(peer.connection, selectors.EVENT_READ, peer)
            while True:
                now = time.monotonic()
                if self._closed_at and (len(ready.get_map()) == 1 or now > self._closed_at + LINGER):
                    return
                if self._ended_at and not self._closed_at and now > self._ended_at + GRACE:
                    self._leave()
                for key, _ in ready.select(0.05 if self._closed_at or self._ended_at else None):
                    if key.data is None:
                        self._woken.recv(1)
                    else:
                        self._take(key.data)
                        if key.data.gone:
                            ready.unregister(key.data.connection)

    def _take(self, peer: _Peer) -> None:
        for kind, call, content in peer.read():
            if kind == _DATA:
                peer.frames.put((call, content))
            elif kind == _BYE:
                peer.left = True
            elif self.ended is None:
                self._set_ended(peer, _CODE.unpack_from(content)[0], content[_CODE.size :].decode(errors="replace"))
        if peer.gone:
            if not peer.left and self.ended is None:
                self._set_ended(peer, self._code, "")
            peer.frames.put(None)

    def _set_ended(self, peer: _Peer, code: int, text: str) -> None:
        """Remember why another process has ended, and let all others know it, which may wait for what never comes."""
        self._code, self._ended_at = code, time.monotonic()
        if code > 128:
            self.ended = Interrupted(text, code - 128)
        else:
            self.ended = ProcessLostError(text) if text else self._lost(peer)
        for other in self._peers.values():
            other.frames.put(None)
            if other is not peer and self.world.rank == 0:
                self._tell_end(other, code, str(self.ended))

    def _tell_end(self, peer: _Peer, code: int, text: str) -> None:
        with suppress(ProcessesError, Interrupted):
            self._send(peer, _END, [_CODE.pack(code), text.encode(errors="backslashreplace")], seconds=LINGER)

    def _leave(self) -> None:
        """End this process, whose main thread does not come back, such as from an exchange that another has left."""
        if self.speaks:
            tell(f"tlx: {self.ended}")
        os._exit(self._code)


class _Peer:
    """Another process: its connection, and what it has sent."""

    def __init__(self, rank: int, connection: socket.socket) -> None:
        self.rank, self.connection = rank, connection
        self.frames: SimpleQueue[tuple[int, bytearray] | None] = SimpleQueue()  # None: no more will come
        self.sending = threading.Lock()
        self.left = False  # it has said that it needs nothing more
        self.gone = False
        self._header, self._content, self._filled = bytearray(_HEADER.size), bytearray(), 0
        self._in_content = False
        connection.setblocking(False)

    def read(self) -> list[tuple[int, int, bytearray]]:
        """Take what has come; return the frames that are whole now, as kind, call and content."""
        frames = []
        while True:
            target = self._content if self._in_content else self._header
            if self._filled == len(target):
                kind, call, length = _HEADER.unpack(self._header)
                if self._in_content:
                    frames.append((kind, call, self._content))
                else:
                    self._content = bytearray(length)
                self._in_content, self._filled = not self._in_content, 0
                continue
            try:
                count = self.connection.recv_into(memoryview(target)[self._filled :])
            except BlockingIOError:
                return frames
            except OSError:
                count = 0
            if count == 0:
                self.gone = True
                return frames
            self._filled += count


def _unpacked(content: memoryview, count: int) -> list[bytes]:
    start, parts = 8 * count, []
    for length in struct.unpack_from(f"!{count}Q", content):
        parts.append(bytes(content[start : start + length]))
        start += length
    return parts
