"""From a launcher's variables to a channel, and how an error of one process ends them all, said once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tlx.errors import Interrupted, ProcessesError, TlxError, one_line
from tlx.processes.channel import PATIENCE, Star
from tlx.processes.here import settle
from tlx.processes.launcher import end_with_launcher, token_of, world_of
from tlx.processes.meeting import WAIT, meet
from tlx.processes.world import ALONE, Alone, Channel

_LAST = b"done"


@contextmanager
def connected(
    environ: Mapping[str, str] | None = None, wait: float = WAIT, patience: float = PATIENCE
) -> Iterator[Channel]:
    """Connect this process with the others of its run, if there are any; all leave the block together.

    An error in one of them ends all: each raises what was said of it. The first process shows it to the user, so what
    the others raise is marked as `told`.

    Args:
        environ: the launcher's variables, by default the environment.
        wait: seconds for all processes to come.
        patience: seconds that one may keep the others waiting.

    Raises:
        ProcessesError: the processes do not find each other.
        ProcessLostError: another process has failed or has ended.
    """
    environ = os.environ if environ is None else environ
    world = world_of(environ)
    if world.size == 1:
        yield Alone()
        return
    end_with_launcher()
    channel = Star(world, meet(world, token_of(environ), wait), patience)
    settle(world)
    try:
        yield channel
        if set(channel.gather(_LAST)) != {_LAST}:  # nobody leaves before all have done their part
            raise ProcessesError("not all processes did the same, which is a defect of tlx or of a backend")
    except BaseException as error:
        # A framework's exchange says in its own words that another process has ended. Where all end for one signal, the
        # first one says what is saved.
        known = isinstance(error, (TlxError, KeyboardInterrupt))
        ended = channel.ended if known else channel.ended_elsewhere()
        if ended is not None and not (isinstance(error, Interrupted) and channel.world.rank == 0):
            ended.told = not channel.speaks
            raise ended from None
        if isinstance(error, (TlxError, Interrupted)):
            error.told = not channel.speaks
        said = str(error) if known else one_line(f"{type(error).__name__}: {error}")
        channel.end(_exit_code(error), f"process {world.rank}: {said}" if world.rank else said)
        raise
    finally:
        settle(ALONE)
        channel.close()


def _exit_code(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return 128 + (error.signum if isinstance(error, Interrupted) else signal.SIGINT)
    return 2 if isinstance(error, TlxError) else 1
