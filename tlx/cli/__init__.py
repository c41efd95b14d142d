"""The command line: a thin layer over the Python interface. Errors are one line on stderr and exit code 2.

One function a command, in the file of its group.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from io import TextIOWrapper

from cyclopts import App, CycloptsError

from tlx.cli.check import check
from tlx.cli.compare import advise, compare, find_lr
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
from tlx.errors import ProcessesError
from tlx.processes import world_of
from tlx.runs.ending import exit_code

app = App(
    name="tlx",
    help="Transfer learning for computer vision in one call, with the same numbers on PyTorch and on OneFlow.",
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,  # `main` says how to go on
)
_COMMANDS = {
    TRAIN: (run, evaluate, predict, export, serve, push, pull),
    CHOOSE: (check, advise, find_lr, compare),
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
    sys.exit(exit_code(partial(_called, arguments), again=shlex.join(["tlx", *arguments])))


def _called(arguments: Sequence[str]) -> object:
    """Call the command. Where a launcher has started several processes, it must be one that they can share."""
    world = world_of(os.environ)
    try:
        if world.size > 1 and arguments and arguments[0] in app and not _spreads(arguments):
            problem = f"tlx {arguments[0]} works in one process, and a launcher has started {world.size}"
            raise ProcessesError(
                problem, fix="start it without torchrun or srun; only `tlx run` and `tlx parity capture` spread"
            )
        return app(arguments, exit_on_error=False, print_error=False)
    except CycloptsError:
        if world.rank > 0:  # all have the same command line, and one is enough to say what is wrong
            return 2
        raise
    except ProcessesError as error:
        error.told = error.told or world.rank > 0
        raise


def _spreads(arguments: Sequence[str]) -> bool:
    return arguments[0] == "run" or tuple(arguments[:2]) == ("parity", "capture")
