"""The only importer of OneFlow: sets what must be set before and mends what the import breaks (0.9.0)."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tlx.processes import here
from tlx.streams import flushed
from tlx_oneflow import blas, processes
from tlx_oneflow.gpus import gpus


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Send what the C++ side prints while loading ("libibverbs not available") to nowhere."""
    flushed(sys.stderr)
    try:
        stderr = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


# Without oneDNN, LayerNorm is 14 times faster and cross-entropy gradients 20 times more accurate.
os.environ.setdefault("ONEFLOW_ENABLE_ONEDNN_OPTS", "0")
os.environ.setdefault("GLOG_minloglevel", "3")
if not gpus():
    # Its scheduler spins while a worker computes, which costs a core; computing itself, it spins no more.
    os.environ.setdefault("ONEFLOW_VM_COMPUTE_ON_WORKER_THREAD", "0")
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "16")  # spin for 2^16 ticks between products, not 2^26
# Left over from another launcher, these make the import wait for peers that never come.
_stray = {
    name: os.environ.pop(name, None) for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
}
if _connects := processes.connects(here()):
    os.environ |= processes.variables(here())

with _quiet_stderr():
    import flowvision
    import flowvision.models
    import oneflow as flow

    flow.ones(2).numpy()  # concurrent first operations from several threads would deadlock
    BLAS = blas.install(flow)

if _connects:
    processes.let_go()
for _name, _value in _stray.items():
    if _value is not None:
        os.environ[_name] = _value
    else:
        os.environ.pop(_name, None)
if threading.current_thread() is threading.main_thread():
    # The import replaces the C handler, after which Ctrl-C crashes the process.
    signal.signal(signal.SIGINT, signal.getsignal(signal.SIGINT))

__all__ = ["BLAS", "flow", "flowvision"]
