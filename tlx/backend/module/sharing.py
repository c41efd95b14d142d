"""What gives something else where several processes share a batch: found at the first step of a phase, and named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tlx.backend.module import own
from tlx.backend.module.boundary import replaced
from tlx.backend.module.net import DeviceBatch, Net
from tlx.backend.module.random_search import drawing
from tlx.errors import BackendError

if TYPE_CHECKING:
    from tlx.backend.module.base import ModuleBackend

INSTANCE_NORMS = ("InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d")


def check(backend: ModuleBackend, net: Net, batch: DeviceBatch) -> None:
    """Raise BackendError, naming the module, where the present phase mixes images in a way that cannot be shared."""
    if net.shared or not batch.shared:
        return
    nn = backend.fw.nn
    for path, module in net.module.named_modules():
        if isinstance(module, nn.SyncBatchNorm):
            raise _refused(f"{path!r} is a SyncBatchNorm", "use nn.BatchNorm2d, which tlx synchronises itself")
        kinds = tuple(getattr(nn, name) for name in INSTANCE_NORMS)
        if isinstance(module, kinds) and module.track_running_stats and net.training[module]:
            fix = "use track_running_stats=False, or a strategy that freezes it"
            raise _refused(f"{path!r} is a {type(module).__name__} that updates running statistics", fix)
    if net.trial is not None and _mixes(backend, net):
        what = "in training each image's outputs depend on the others of its batch, and not by nn.BatchNorm alone"
        raise _refused(what, "use nn.BatchNorm or nn.GroupNorm")


def watched(backend: ModuleBackend, net: Net, batch: DeviceBatch, forward: Callable[[], Any]) -> Any:
    """Run a forward pass; raise BackendError where the first that is shared draws random numbers that are not tlx's."""
    if net.shared or not batch.shared:
        return forward()
    if not net.foreign:
        net.shared = True
        return forward()
    output, path = drawing(backend, net, forward)
    if path is not None:
        kind = type(dict(net.module.named_modules())[path]).__name__
        what = f"{path or 'the model'!r} ({kind}) draws random numbers that are not tlx's (F.dropout?)"
        raise _refused(what, 'use nn.Dropout modules, or exact="bits"')
    net.shared = True
    return output


def _refused(what: str, fix: str) -> BackendError:
    return BackendError(f"{what}: several processes would not give what one does", fix=f"{fix}, or run in one process")


def _mixes(backend: ModuleBackend, net: Net) -> bool:
    """Whether the first of two images gives other logits beside another one, where BatchNorm is left out."""
    fw, trial, logits = backend.fw, net.trial, []
    before = backend.dump_arrays(net)
    others = (trial.images, fw.cat([trial.images[:1]] * own.IMAGES))
    try:
        with fw.no_grad(), replaced(backend.batch_norm_functions(lambda x, *_: x)):
            for images in others:
                net.masks.begin(own.EVALUATION)
                with own.seeded(backend, net, own.EVALUATION):
                    output = own.checked(net, trial, backend.outputs(net, replace(trial, images=images)))
                logits.append(backend.array(output.to(fw.float64))[0])
    finally:
        backend.load_arrays(net, before)
    return not np.array_equal(logits[0], logits[1], equal_nan=True)
