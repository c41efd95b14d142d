"""Real processes over real sockets: they meet, exchange, die and hang; strangers come."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from support.processes import free_port, outcomes, started, variables
from tlx.processes.meeting import CHANNEL_PORT

TALK = """
print("ready", flush=True)
while True:
    channel.gather(b"x")
    time.sleep(0.01)
"""


def await_ready(children: list[subprocess.Popen[str]]) -> None:
    for child in children:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"


@pytest.mark.parametrize("size", [2, 3])
def test_each_process_gets_the_parts_of_all_in_the_order_of_ranks(size: int) -> None:
    work = """
    for call in range(20):
        parts = channel.gather(bytes([rank]) * (rank * 3 + call))
        assert parts == [bytes([r]) * (r * 3 + call) for r in range(size)], parts
    assert of_first(channel, b"mine" if rank == 0 else b"not sent") == b"mine"
    assert highest(channel, 300 * rank) == 300 * (size - 1)
    print("done")
    """
    with started(work, size) as children:
        assert outcomes(children) == [(0, "done\n", "")] * size


def test_parts_of_many_megabytes_arrive_whole() -> None:
    work = """
    import hashlib
    own = hashlib.shake_128(bytes([rank])).digest(30_000_001 * rank)
    print([hashlib.sha256(part).hexdigest() for part in channel.gather(own)])
    """
    with started(work, 3) as children:
        ends = outcomes(children)
    assert [code for code, _, _ in ends] == [0, 0, 0] and len({text for _, text, _ in ends}) == 1, ends


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_a_process_that_is_killed_ends_all_at_once_and_is_named_by_one(victim: int) -> None:
    with started(TALK, 3) as children:
        await_ready(children)
        children[victim].send_signal(signal.SIGKILL)
        killed = time.monotonic()
        ends = outcomes(children)
    assert time.monotonic() - killed < 5
    assert [code for code, _, _ in ends] == [-signal.SIGKILL if rank == victim else 2 for rank in range(3)], ends
    said = [text for rank, (_, text, _) in enumerate(ends) if rank != victim and text.startswith("tlx:")]
    assert len(said) == 1 and f"process {victim} (of 0 to 2) has ended without a word" in said[0], ends
    assert not any(errors for _, _, errors in ends)


def test_a_process_deep_in_other_work_ends_within_the_grace_when_another_is_killed() -> None:
    work = """
    print("ready", flush=True)
    time.sleep(60)  # as in an exchange of a framework that never comes to its end
    """
    with started(work, 3) as children:
        await_ready(children)
        children[1].send_signal(signal.SIGKILL)
        killed = time.monotonic()
        ends = outcomes(children)
    assert time.monotonic() - killed < 15
    assert [code for code, _, _ in ends] == [2, -signal.SIGKILL, 2]
    assert ends[0][2].count("\n") == 1 and "tlx: process 1 (of 0 to 2) has ended without a word" in ends[0][2]
    assert ends[2][1:] == ("", "")


def test_a_process_that_hangs_is_named_when_the_patience_ends() -> None:
    work = """
    print("ready", flush=True)
    channel.gather(b"") if rank != 1 else time.sleep(60)
    """
    with started(work, 3, limits={"patience": 1.0}) as children:
        await_ready(children)
        begun = time.monotonic()
        for child in (children[0], children[2]):
            child.wait(timeout=20)
        assert time.monotonic() - begun < 5
        children[1].kill()
        ends = outcomes(children)
    assert ends[0][:2] == (2, "tlx: process 1 (of 0 to 2) has not answered for 1 s; it may hang\n"), ends
    assert ends[2][0] == 2 and ends[2][1].startswith("told "), ends


def test_an_error_of_one_process_is_shown_by_the_first_and_ends_all() -> None:
    work = """
    if rank == 2:
        raise TlxError("photo.jpg cannot be read", fix="remove it")
    channel.gather(b"")
    """
    with started(work, 3) as children:
        ends = outcomes(children)
    assert [code for code, _, _ in ends] == [2, 2, 2]
    assert ends[0][1] == "tlx: process 2: photo.jpg cannot be read. Fix: remove it\n"
    assert all(text.startswith("told ") for _, text, _ in ends[1:]), ends


def test_an_exception_of_a_framework_is_explained_by_the_error_of_another_process() -> None:
    work = """
    if rank == 1:
        time.sleep(0.3)
        raise TlxError("the disk is full")
    raise RuntimeError("Connection closed by peer [127.0.0.1]:1234")
    """
    with started(work, 2) as children:
        ends = outcomes(children)
    assert ends[0] == (2, "tlx: process 1: the disk is full\n", "") and ends[1][0] == 2


def test_a_signal_to_one_process_ends_all_with_its_code() -> None:
    work = """
    if rank == 1:
        raise Interrupted("stopped", signal.SIGTERM)
    channel.gather(b"")
    """
    with started(work, 3) as children:
        assert [code for code, _, _ in outcomes(children)] == [143, 143, 143]


def test_a_stranger_with_garbage_silence_or_a_wrong_token_neither_joins_nor_disturbs() -> None:
    port = free_port()
    with started("print(channel.gather(bytes([rank])))", 2, port, skip=(1,)) as (first,):
        strangers = []
        for said in (b"", b"GET / HTTP/1.1\r\n\r\n", os.urandom(5000)):
            while True:
                try:
                    strangers.append(socket.create_connection(("127.0.0.1", port + CHANNEL_PORT), timeout=5))
                    break
                except ConnectionRefusedError:
                    time.sleep(0.02)
            strangers[-1].sendall(said)
        wrong = {**os.environ, **variables(1, 2, port, TLX_RUN_TOKEN="of another run")}
        script = "from tlx.processes import connected\nwith connected(wait=1.0): pass"
        other = subprocess.run(
            [sys.executable, "-c", script], env=wrong, capture_output=True, text=True, timeout=60, check=False
        )
        assert "did not reach process 0" in other.stderr and "belongs to another run" in other.stderr
        right = {**os.environ, **variables(1, 2, port)}
        script = "from tlx.processes import connected\nwith connected() as c: print(c.gather(b'b'))"
        late = subprocess.run(
            [sys.executable, "-c", script], env=right, capture_output=True, text=True, timeout=60, check=True
        )
        assert late.stdout == "[b'\\x00', b'b']\n"
        assert outcomes([first]) == [(0, late.stdout, "")]
        for stranger in strangers:
            stranger.close()


def test_two_processes_of_one_rank_are_not_both_let_in() -> None:
    port = free_port()
    with started("print(channel.gather(b''), flush=True)", 2, port, {"wait": 20.0}, skip=(1,)) as (first,):
        with started("channel.gather(b''); channel.gather(b'')", 3, port, {"wait": 1.0}, skip=(0, 2)) as (other,):
            assert "did not reach process 0" in outcomes([other])[0][1]  # it is of a run of another size
        twice = "print(channel.gather(b''), flush=True)"
        with (
            started(twice, 2, port, {"wait": 1.0}, skip=(0,)) as (one,),
            started(twice, 2, port, {"wait": 1.0}, skip=(0,)) as (two,),
        ):
            ends = outcomes([first, one, two])
    assert sorted(code for code, _, _ in ends) == [0, 0, 2], ends


def test_a_port_that_is_taken_is_named_with_the_way_out() -> None:
    port = free_port()
    with (
        socket.create_server(("127.0.0.1", port + CHANNEL_PORT)),
        started("channel.gather(b'')", 2, port, {"wait": 1.0}) as children,
    ):
        ends = outcomes(children)
    assert [code for code, _, _ in ends] == [2, 2]
    assert f"process 0 cannot listen on 127.0.0.1:{port + 2}: " in ends[0][1] and "MASTER_PORT" in ends[0][1], ends
    assert "process 1 of 2 did not reach process 0" in ends[1][1], ends


def test_a_process_that_does_not_come_is_named() -> None:
    with started("channel.gather(b'')", 4, limits={"wait": 1.0}, skip=(1, 3)) as children:
        ends = outcomes(children)
    assert "of 4 processes, 1, 3 did not come to 127.0.0.1:" in ends[0][1], ends


@pytest.mark.thorough
def test_a_process_that_starts_ten_seconds_late_is_waited_for() -> None:
    port = free_port()
    with started("print(channel.gather(bytes([rank])))", 2, port, skip=(1,)) as (first,):
        time.sleep(10)
        with started("print(channel.gather(bytes([rank])))", 2, port, skip=(0,)) as (second,):
            assert outcomes([first, second]) == [(0, "[b'\\x00', b'\\x01']\n", "")] * 2


def test_processes_that_do_not_do_the_same_are_found_out() -> None:
    work = "[channel.gather(b'') for _ in range(3 + rank)]"
    with started(work, 2) as children:
        ends = outcomes(children)
    assert [code for code, _, _ in ends] == [2, 2], ends
