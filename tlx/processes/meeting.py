"""How the processes of a run find each other, and keep strangers out: each proves that it knows the run's token."""

from __future__ import annotations

import hashlib
import hmac
import os
import socket
import struct
import threading
import time
from contextlib import suppress

from tlx.errors import ProcessesError
from tlx.processes.world import World

CHANNEL_PORT = 2  # is added to the launcher's port: the next two are those of PyTorch and of OneFlow
WAIT = 300.0  # seconds for all to come: nodes of a cluster start minutes apart; torchrun waits as long
ANSWER = 5.0  # seconds for a proof
_MAGIC = b"tlx/1\n"
_NONCE, _PROOF = 16, 32
_RANK = struct.Struct("!I")
# Notice within 15 s that a machine or its network is gone, of which nobody sends word; macOS names the first otherwise.
_ALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPALIVE": 5, "TCP_KEEPINTVL": 3, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 15_000}


def meet(world: World, token: bytes, wait: float = WAIT) -> dict[int, socket.socket]:
    """Connect the first process with all others; returns the connections, by the rank at the other end.

    Raises:
        ProcessesError: not all came in time, or the first one's port is taken.
    """
    connections = _gather(world, token, wait) if world.rank == 0 else {0: _join(world, token, wait)}
    for connection in connections.values():
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _ALIVE.items():
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return connections


def _gather(world: World, token: bytes, wait: float) -> dict[int, socket.socket]:
    """Wait for the others; each connection has a thread of its own, so that a silent stranger holds up nobody."""
    port, deadline = world.port + CHANNEL_PORT, time.monotonic() + wait
    came: dict[int, socket.socket] = {}
    changed = threading.Lock()

    def admit(connection: socket.socket) -> None:
        try:
            rank = _admitted(connection, token)
        except (OSError, ValueError):
            connection.close()
            return
        with changed:
            if 0 < rank < world.size and rank not in came:
                came[rank] = connection
            else:
                connection.close()

    with _listener(world, port) as listener:
        while len(came) < world.size - 1:
            left = deadline - time.monotonic()
            if left <= 0:
                missing = ", ".join(str(rank) for rank in range(1, world.size) if rank not in came)
                raise ProcessesError(
                    f"of {world.size} processes, {missing} did not come to {world.host}:{port} within {wait:.0f} s",
                    fix="see what they say, and that this port can be reached from where they run",
                )
            listener.settimeout(min(left, 0.1))
            with suppress(TimeoutError):
                connection, _ = listener.accept()
                threading.Thread(target=admit, args=(connection,), daemon=True).start()
    return came


def _listener(world: World, port: int) -> socket.socket:
    """Listen: where all processes are on this machine, to no other."""
    try:
        if world.local_size == world.size:
            family, _, _, _, address = socket.getaddrinfo(world.host, port, type=socket.SOCK_STREAM)[0]
            return socket.create_server(address[:2], family=family)
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        problem = f"process 0 cannot listen on {world.host}:{port}: {error.strerror or error}"
        raise ProcessesError(problem, fix="choose another port (MASTER_PORT; torchrun has --master-port)") from None


def _join(world: World, token: bytes, wait: float) -> socket.socket:
    """Connect to the first process, which may begin later, or still be busy ending an earlier start of the run."""
    port, deadline = world.port + CHANNEL_PORT, time.monotonic() + wait
    while True:
        try:
            connection = socket.create_connection((world.host, port), timeout=ANSWER)
            try:
                _prove(connection, token, world.rank)
                return connection
            except (OSError, ValueError):
                connection.close()
                raise
        except (OSError, ValueError) as error:
            if time.monotonic() > deadline:
                reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
                raise ProcessesError(
                    f"process {world.rank} of {world.size} did not reach process 0 at {world.host}:{port} within "
                    f"{wait:.0f} s: {reason}",
                    fix="see what process 0 says, and that this port can be reached",
                ) from None
        time.sleep(0.1)


def _admitted(connection: socket.socket, token: bytes) -> int:
    """Return the rank of whoever proves to know the token; the proof is of fresh numbers, so nobody can repeat it."""
    deadline = time.monotonic() + ANSWER
    mine = os.urandom(_NONCE)
    connection.settimeout(ANSWER)
    connection.sendall(_MAGIC + mine)
    answer = _exactly(connection, len(_MAGIC) + _NONCE + _RANK.size + _PROOF, deadline)
    claim, proof = answer[:-_PROOF], answer[-_PROOF:]
    if not claim.startswith(_MAGIC) or not hmac.compare_digest(proof, _proof(token, b"join" + mine + claim)):
        raise ValueError("it does not know the token")
    connection.sendall(_proof(token, b"welcome" + claim + mine))
    return int(_RANK.unpack(claim[-_RANK.size :])[0])


def _prove(connection: socket.socket, token: bytes, rank: int) -> None:
    """Prove to know the token, and see that the other side does."""
    deadline = time.monotonic() + ANSWER
    hello = _exactly(connection, len(_MAGIC) + _NONCE, deadline)
    if not hello.startswith(_MAGIC):
        raise ValueError("another program listens there")
    theirs, claim = hello[len(_MAGIC) :], _MAGIC + os.urandom(_NONCE) + _RANK.pack(rank)
    connection.sendall(claim + _proof(token, b"join" + theirs + claim))
    if not hmac.compare_digest(_exactly(connection, _PROOF, deadline), _proof(token, b"welcome" + claim + theirs)):
        raise ValueError("another run listens there")


def _proof(token: bytes, text: bytes) -> bytes:
    return hmac.new(token, text, hashlib.sha256).digest()


def _exactly(connection: socket.socket, count: int, deadline: float) -> bytes:
    content = b""
    while len(content) < count:
        connection.settimeout(max(0.01, deadline - time.monotonic()))
        part = connection.recv(count - len(content))
        if not part:
            raise ValueError("it belongs to another run, or to another program")
        content += part
    return content
