"""The process in which a logger works. It reads one JSON value a line from stdin, and answers with one on stdout.

The first line begins the run, then follow epochs, and at last its end; a stdin that ends before is an interruption. The
answer is ``{"ok": true}``, or what went wrong.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tlx.errors import one_line
from tlx.loggers.protocol import Logger, Run
from tlx.loggers.registry import load


def main(name: str) -> None:
    """Work for the logger of a name until stdin ends."""
    # The run decides what a signal means. What a client prints is no part of the answer.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    said: dict[str, Any] = {"ok": True}
    try:
        follow(name, (json.loads(line) for line in sys.stdin))
    except BaseException as error:  # a client may also exit
        said = {"ok": False, "why": one_line(f"{type(error).__name__}: {error}", 200)}
    answer.write(json.dumps(said) + "\n")
    answer.flush()
    os._exit(0)  # without the threads and the handlers of a client, which may wait for a server


def follow(name: str, messages: Iterator[dict[str, Any]]) -> None:
    """Tell a logger what the messages say."""
    logger: Logger | None = None
    epochs = 0
    for message in messages:
        if "begin" in message:
            facts = message["begin"]
            earlier = tuple((int(epoch), figures) for epoch, figures in facts["earlier"])
            run = Run(**{**facts, "folder": Path(facts["folder"]), "earlier": earlier})
            run.folder.mkdir(parents=True, exist_ok=True)
            logger = load(name).start(run)
            epochs = len(earlier)
        elif "end" in message and logger is not None:
            logger.end(epochs, message["end"])
            return
        elif logger is not None:
            logger.epoch(message["epoch"], message["figures"])
            epochs = message["epoch"]
    if logger is not None:
        logger.end(epochs, None)
