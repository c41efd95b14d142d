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
from tlx.cli.compare import compare, find_lr
from tlx.cli.embed import draw, embed, similar, tsne
from tlx.cli.explain import explain
from tlx.cli.export import export
from tlx.cli.hub import pull, push
from tlx.cli.look_up import backends, doctor, models, runs, strategies
from tlx.cli.options import CHOOSE, LOOK, LOOK_UP, TRAIN
from tlx.cli.parity import parity
from tlx.cli.report import report
from tlx.cli.serve import serve
from tlx.cli.train import evaluate, predict, run
from tlx.runs.ending import exit_code

app = App(
    name="tlx",
    help="Transfer learning for computer vision in one call, with the same numbers on PyTorch and on OneFlow.",
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,  # `main` says how to go on
)
_COMMANDS = {
    TRAIN: (run, evaluate, predict, export, serve, push, pull),
    CHOOSE: (check, find_lr, compare),
    LOOK: (report, explain, draw, embed, similar, tsne),
    LOOK_UP: (runs, strategies, models, backends, doctor),
}
for _group, _commands in _COMMANDS.items():
    for _place, _command in enumerate(_commands):
        app.command(_command, group=_group, sort_key=_place)
app.command(parity)


def main() -> None:
    """Run the command line and exit: 0 done, 1 a check failed, 2 a mistake in the input, 128 and more for a signal."""
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a character, or a path that is no UTF-8
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    arguments = sys.argv[1:]
    command = partial(app, arguments, exit_on_error=False, print_error=False)
    sys.exit(exit_code(command, again=shlex.join(["tlx", *arguments])))
