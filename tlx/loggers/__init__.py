"""Loggers: what keeps a run's figures where other programs show them, such as TensorBoard or MLflow.

A run hands its figures to a process of its own, `tlx.loggers.worker`, in which the logger and its client work. So a
client changes nothing in the process that trains, prints nothing into it, and delays no step while a server is slow.

A package adds a logger by an entry point in the group `tlx.loggers`, whose name is what `log` takes and whose value is
a light module. That offers

- ``start(run: tlx.loggers.Run) -> tlx.loggers.Logger``: imports the client and begins, or goes on with, a series;
- ``NEEDS = "client"``: the name that the client is imported by, which is looked for before the run begins;
- ``INSTALL = "pip install client"``: the command that an error names if it is missing.

The last two may be absent.
"""

from __future__ import annotations

from tlx.loggers.protocol import Figures as Figures
from tlx.loggers.protocol import Logger as Logger
from tlx.loggers.protocol import Run as Run
