"""The last map of features that a model computes before it pools it: where that is, and what a logit makes of it.

Where it is shows in a pass of the model: the last output of a module before the head that is a map of more than one
cell, channels first or last, and no mere pooling; or tokens that a block or a norm layer gives out, with a cell for
each patch. It must reach the logits: where a Vision Transformer classifies by its class token alone, the patches count
last where they enter the attention of its last block.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from tlx import rng
from tlx.backend.module.boundary import forwarding
from tlx.backend.protocol import Array, FeatureMap
from tlx.errors import BackendError

if TYPE_CHECKING:
    from tlx.backend.module.base import ModuleBackend
    from tlx.backend.module.net import DeviceBatch, Net

HOOK = "tlx-feature-map"
ATTENTION = ("Attention", "Attn")  # what a module of such a class computes within itself may look like a map
NO_MAPS = ("Drop", "Identity", "Softmax")  # modules that pass on in evaluation what enters them, or weigh it
PREFIX = 32  # tokens before those of the patches, at most: of the class, and registers
TRIED = 48  # of the last outputs that are maps; one that does not reach the logits is followed by few that do not
IMAGES = 2  # in a trial, so that a tensor of one row for each image can be told from others


@dataclass(frozen=True, slots=True)
class Place:
    """An output of a module that is a map: in which call of it, and how the map lies in it."""

    path: str
    call: int
    rows: int
    columns: int
    axis: int  # of the channels: 1 or 3 of maps, 2 of tokens
    prefix: int = 0  # tokens that are no cells

    def maps(self, output: Array) -> Array:
        """Return an output as maps [N, channels, rows, columns]."""
        if self.axis == 2:
            cells = output[:, self.prefix :]
            output = cells.reshape(len(cells), self.rows, self.columns, -1)
        return output if self.axis == 1 else np.ascontiguousarray(output.transpose(0, 3, 1, 2))


def feature_map(backend: ModuleBackend, net: Net, batch: DeviceBatch, classes: Array | None) -> FeatureMap:
    """Do what `tlx.backend.protocol.Explains.feature_map` says."""
    with _untouched(net):
        shape = tuple(batch.images.shape[1:])
        place = net.maps.get(shape)
        if place is None:
            place, reaches = _find(backend, net, batch)
            if reaches:
                net.maps[shape] = place
        logits, values, gradients = _run(backend, net, batch, place, partial(_one_hot, backend, net, classes))
    return FeatureMap(place.path, place.maps(values), place.maps(gradients), logits)


def _one_hot(backend: ModuleBackend, net: Net, classes: Array | None, logits: Any) -> Any:
    chosen = backend.array(logits).argmax(axis=1) if classes is None else np.asarray(classes)
    if chosen.shape != (len(logits),) or not ((chosen >= 0) & (chosen < net.classes)).all():
        raise BackendError(
            f"feature_map: expected one class of 0 to {net.classes - 1} for each of {len(logits)} images"
        )
    one_hot = np.zeros((len(chosen), net.classes))
    one_hot[np.arange(len(chosen)), chosen] = 1.0
    return backend.tensor(one_hot, net.device).to(logits.dtype)


def _find(backend: ModuleBackend, net: Net, batch: DeviceBatch) -> tuple[Place, bool]:
    """Return the last map that reaches the logits, and True; where none does, as with a head of zeros, the last."""
    first = (backend.fw.cat([tensor[:1]] * IMAGES) for tensor in (batch.images, batch.labels))
    trial = replace(batch, images=next(first), labels=next(first), targets=None, size=IMAGES)
    watch = Watch(backend, net)
    with backend.fw.no_grad(), watch.watching():
        backend._forward(net, trial)
    if not watch.places:
        raise BackendError(watch.nothing())
    weights = rng.uniform(0, "feature_map", (IMAGES, net.classes)) + 0.5

    def weighted(logits: Any) -> Any:
        return backend.tensor(weights, net.device).to(logits.dtype)

    for place in watch.places[: -TRIED - 1 : -1]:
        gradients = _run(backend, net, trial, place, weighted)[2]
        if place.maps(gradients).any():
            return place, True
    return watch.places[-1], False


def _run(
    backend: ModuleBackend, net: Net, batch: DeviceBatch, place: Place, weights: Callable[[Any], Any]
) -> tuple[Array, Array, Array]:
    """Return the logits, the output at a place, and the gradient to it of the logits' sum with these weights.

    The output becomes a leaf of autograd, so that nothing is computed backwards, or kept for it, before the place.
    """
    module, calls, leaves = dict(net.module.named_modules())[place.path], Counter[str](), list[Any]()
    forward = module.forward

    def standing(*args: Any, **named: Any) -> Any:
        output = forward(*args, **named)
        calls[place.path] += 1
        if calls[place.path] != place.call:
            return output
        leaf = output.detach().to(net.dtype).requires_grad_(True)
        leaves.append(leaf)
        passed = leaf * 1  # a module after it may work in place, which a leaf forbids
        if not passed.requires_grad:
            raise BackendError("no gradients are computed here (torch.inference_mode?); call tlx outside of it")
        return passed.to(output.dtype)

    with backend.fw.enable_grad(), forwarding([(module, standing)]):
        logits = backend._forward(net, batch).to(net.dtype)
        if not leaves:
            raise BackendError(f"{net.module.__class__.__name__}: this pass never comes to {place.path!r}")
        if logits.requires_grad:
            try:
                (logits * weights(logits.detach())).sum().backward()
            except RuntimeError as error:
                raise BackendError(backend.failure(net, batch, error)) from error
    values = backend.array(leaves[0])
    gradients = np.zeros_like(values) if leaves[0].grad is None else backend.array(leaves[0].grad)
    return backend.array(logits), values, gradients


class Watch:
    """Notes, during one pass, each output that is a map."""

    def __init__(self, backend: ModuleBackend, net: Net) -> None:
        self.backend, self.net = backend, net
        self.modules = dict(net.module.named_modules())
        self.places: list[Place] = []
        self.single: str | None = None  # the path of the last map of one cell
        self._calls: Counter[str] = Counter()
        self._grid: tuple[int, int] | None = None  # of the last map: tokens are its cells
        self._pooled: list[Any] = []  # what a pooling gave out, which the modules around it give out too
        self._behind = False  # the head has begun
        within = [f"{path}." for path, m in self.modules.items() if any(kind in type(m).__name__ for kind in ATTENTION)]
        self._hidden = {path for path in self.modules if f"{path}.".startswith(tuple(within))} if within else set()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch each module while the block runs."""
        with forwarding([(m, partial(self._called, path, m, m.forward)) for path, m in self.modules.items()]):
            yield

    def nothing(self) -> str:
        """Say that there is no map, and what was looked for."""
        sought = (
            "before its head no module gives out a map [N, channels, rows, columns] or [N, rows, columns, channels] "
            "with as many rows as columns, and no block or norm layer tokens [N, tokens, channels] of patches"
        )
        if self.single is not None:
            sought = (
                f"the last map before its head, at {self.single!r}, is a single cell; a larger image_size gives more"
            )
        return f"{type(self.net.module).__name__} has no map of features to explain by: {sought}"

    def _called(self, path: str, module: Any, forward: Any, *args: Any, **named: Any) -> Any:
        self._behind = self._behind or bool(path and path == self.net.head)
        output = forward(*args, **named)
        self._calls[path] += 1
        if not self._behind and path not in self._hidden and isinstance(output, self.backend.fw.Tensor):
            self._note(path, module, output)
        return output

    def _note(self, path: str, module: Any, output: Any) -> None:
        kind, leaf = type(module).__name__, not module._modules
        if leaf and "Pool" in kind:
            self._pooled.append(output)
        shape = tuple(output.shape)
        if shape[:1] != (IMAGES,) or 0 in shape or kind.startswith(NO_MAPS):
            return
        if any(output is pooled for pooled in self._pooled):
            return
        if len(shape) == 4:
            self._note_maps(path, shape)
        elif len(shape) == 3 and (not leaf or "Norm" in kind or isinstance(module, self.backend.norms)):
            self._note_tokens(path, shape[1])

    def _note_maps(self, path: str, shape: tuple[int, ...]) -> None:
        axis = 1 if shape[2] == shape[3] else 3 if shape[1] == shape[2] else 0  # images are square
        if not axis:
            return
        rows = columns = shape[2]
        self._grid = (rows, columns)
        if rows * columns > 1:
            self.places.append(Place(path, self._calls[path], rows, columns, axis))
        else:
            self.single = path

    def _note_tokens(self, path: str, tokens: int) -> None:
        """Note tokens: a cell of the last map each, or of one that is halved some times; else of a square."""
        rows, columns = self._grid or (0, 0)
        while rows * columns > tokens:
            rows, columns = -(-rows // 2), -(-columns // 2)
        if not 0 <= tokens - rows * columns <= PREFIX or not rows:
            rows = columns = int(np.sqrt(tokens))
            if tokens - rows * columns > 1:
                return
        if rows * columns > 1:
            self.places.append(Place(path, self._calls[path], rows, columns, 2, tokens - rows * columns))


@contextmanager
def _untouched(net: Net) -> Iterator[None]:
    """Let no parameter have a gradient, and no module take a way around its children, while the block runs.

    Afterwards all is as it was: modes, what trains, and which hooks there are.
    """
    modes, mode = [(module, module.training) for module in net.module.modules()], net.mode
    trains = [(param, param.requires_grad, param.grad) for param in net.module.parameters()]
    with ExitStack() as undo:
        for module, training in modes:
            module._forward_hooks[HOOK] = _nothing  # torch's fused transformer layer looks for hooks
            undo.callback(module._forward_hooks.pop, HOOK)
            undo.callback(setattr, module, "training", training)
        undo.callback(setattr, net, "mode", mode)
        for param, trained, grad in trains:
            param.requires_grad_(False)
            undo.callback(setattr, param, "grad", grad)  # OneFlow forgets it
            undo.callback(param.requires_grad_, trained)
        yield


def _nothing(module: Any, args: Any, output: Any) -> None:
    """Change nothing."""
