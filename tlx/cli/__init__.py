"""The command line: a thin layer over the Python interface. Errors are one line on stderr and exit code 2.

One function a command, in the file of its group.
"""

from __future__ import annotations

import shlex
import sys
from functools import partial
from io import TextIOWrapper

from cyclopts import App

from tlx.cli.check import check
from tlx.cli.export import export
from tlx.cli.look_up import backends, doctor, models, runs, strategies
from tlx.cli.options import LOOK_UP, TRAIN
from tlx.cli.parity import parity
from tlx.cli.train import evaluate, predict, run
from tlx.runs.ending import exit_code

app = App(
    name="tlx",
    help="Transfer learning for computer vision in one call, with the same numbers on PyTorch and on OneFlow.",
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,  # `main` says how to go on
)
app.command(parity)
app.command(run, group=TRAIN, sort_key=1)
app.command(evaluate, group=TRAIN, sort_key=2)
app.command(predict, group=TRAIN, sort_key=3)
app.command(export, group=TRAIN, sort_key=4)
app.command(check, group=TRAIN, sort_key=0)
app.command(runs, group=LOOK_UP)
app.command(strategies, group=LOOK_UP)
app.command(models, group=LOOK_UP)
app.command(backends, group=LOOK_UP)
app.command(doctor, group=LOOK_UP)


def main() -> None:
    """Run the command line and exit: 0 done, 1 a check failed, 2 a mistake in the input, 128 and more for a signal."""
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a character, or a path that is no UTF-8
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    arguments = sys.argv[1:]
    command = partial(app, arguments, exit_on_error=False, print_error=False)
    sys.exit(exit_code(command, again=shlex.join(["tlx", *arguments])))
