"""Building a model of timm: what tlx changes in it, its first values, and checkpoints of other layouts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torchvision.ops import StochasticDepth

from tlx import rng
from tlx.backend import Array, Arrays, ModelSpec
from tlx.backend.module.base import ModuleBackend
from tlx.backend.module.build import describe, holder
from tlx.backend.module.net import Net
from tlx.backend.module.own import trial_batch
from tlx_torch.timm_models import check_size, constants, created, layout, norms

Read = Callable[..., Any]  # brings a checkpoint into a model's layout: timm's checkpoint_filter_fn


def build(name: str, classes: int, size: int) -> nn.Module:
    """Make a model for images of `size` pixels (0: its own), whose dropouts and head tlx can replace.

    Raises:
        RecipeError: there is no such model.
        BackendError: it cannot take images of that size.
    """
    known = layout(name)
    size = size or known.arch.pixels.size
    check_size(name, size)
    module = created(name, classes, size if known.sized else 0)
    if known.twin:  # the mean of one layer's outputs for two tokens is its output for their mean
        parent, _, attribute = known.twin.rpartition(".")
        setattr(module.get_submodule(parent), attribute, module.get_submodule(known.arch.head))
    head = module.get_submodule(known.arch.head)
    if isinstance(head, nn.Linear):
        head.__class__ = nn.Linear  # timm's own, of pruned models, differs in a script alone
    _replace_drop_paths(module)
    return module


def describe_built(backend: ModuleBackend, net: Net, spec: ModelSpec) -> None:
    """Tell a net how it takes its values, which norms are timm's, what it does not save, and what to try it on."""
    net.library = Fitting(spec.name, spec.classes, spec.image_size)
    made, kinds = constants(net.module), (*backend.norms, *norms())
    adapters = {spec.name for spec in net.specs if spec.role == "adapter"}
    described = (spec for spec in describe(net.module, kinds) if spec.name not in made)
    net.specs = tuple(replace(spec, role="adapter") if spec.name in adapters else spec for spec in described)
    net.trial = trial_batch(backend, net, spec.image_size or layout(spec.name).arch.pixels.size)
    rate = float(getattr(net.module, "drop_rate", 0.0))
    if rate and not any(layer.p == rate for layer in net.dropouts):
        net.notes.append(
            f"its code drops {rate:.0%} of what enters the head while it trains, so features are not cached"
        )


def _replace_drop_paths(module: nn.Module) -> None:
    """Put torchvision's stochastic depth in the place of timm's, which drops the same, so that the core draws it."""
    from timm.layers import DropPath

    for parent in list(module.modules()):
        for attribute, child in list(parent._modules.items()):
            if isinstance(child, DropPath) and child.scale_by_keep:
                setattr(parent, attribute, StochasticDepth(float(child.drop_prob), "row"))


class Fitting:
    """How a built model of timm takes its values: see `tlx.models.libraries`."""

    def __init__(self, name: str, classes: int, size: int) -> None:
        known = layout(name)
        self.name, self.classes = name, classes
        self.size = (size or known.arch.pixels.size) if known.sized else 0
        self.heads = [path for path in (known.arch.head, known.twin) if path]

    def first_values(self, seed: int) -> dict[str, Array]:
        """Return what timm begins with; it draws from PyTorch's generator, which is seeded."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(rng.framework_seed(seed, 0, 0))
            module = created(self.name, self.classes, self.size)
        return {name: _array(tensor) for name, tensor in module.state_dict().items() if not self._of_head(name)}

    def translated(self, arrays: Arrays) -> Arrays:
        """Return a checkpoint as timm itself would load it: names of other layouts, and positions of other grids.

        What timm cannot read comes back as it is, for the core to say what does not fit.
        """
        skeleton, read = self._reader()
        wanted = {name: tuple(t.shape) for name, t in skeleton.state_dict().items() if not self._of_head(name)}
        inner = {name: array for name, array in arrays.items() if not self._of_head(name)}
        fits = all(name in inner and inner[name].shape == shape for name, shape in wanted.items())
        if not fits and read is not None:
            tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
            try:
                state = _read(read, tensors, skeleton)
            except Exception:  # it is written for the layouts that it knows
                return inner
            inner = {n: _array(t) for n, t in state.items() if isinstance(t, torch.Tensor) and not self._of_head(n)}
        tables = constants(skeleton)
        return {name: array for name, array in inner.items() if name not in tables}

    def _reader(self) -> tuple[nn.Module, Read | None]:
        """Return a model without values, and the function that timm would pass a checkpoint of it through."""
        with caught_reader() as readers, torch.device("meta"):
            skeleton = created(self.name, self.classes, self.size, pretrained=True)
        return skeleton, next(iter(readers), None)

    def _of_head(self, name: str) -> bool:
        return bool(holder(name, self.heads))


@contextmanager
def caught_reader() -> Iterator[list[Read]]:
    """Keep timm from loading weights while the block runs, and list the functions that they would pass through.

    timm hands that function to its loader and nowhere else.
    """
    from timm.models import _builder

    readers: list[Read] = []

    def catch(model: nn.Module, *others: Any, filter_fn: Read | None = None, **named: Any) -> None:
        readers.extend([filter_fn] if filter_fn is not None else [])

    loader = _builder.load_pretrained
    _builder.load_pretrained = catch
    try:
        yield readers
    finally:
        _builder.load_pretrained = loader


def _read(read: Read, tensors: dict[str, torch.Tensor], skeleton: nn.Module) -> Any:
    try:
        return read(tensors, skeleton)
    except TypeError:  # older ones take the checkpoint alone, as timm knows
        return read(tensors)


def _array(tensor: torch.Tensor) -> Array:
    return np.asarray(tensor.detach().float().numpy() if tensor.dtype is torch.bfloat16 else tensor.detach().numpy())
