"""How far a data set lies from the one that a model was pretrained on, as its BatchNorm layers see it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tlx.backend import Array, Backend, Handle, Model, ParamSpec

MEAN, VARIANCE = "running_mean", "running_var"
TINY = 1e-12  # below, a variance is that of a channel without a signal


def domain_distance(
    backend: Backend, model: Model, specs: Sequence[ParamSpec], head: Sequence[str], batch: Handle, noise: Handle
) -> float | None:
    """Return how far the inputs of the BatchNorm layers lie from the statistics that the model came with.

    Each channel is taken for normally distributed, with the mean m and the variance v of a batch here and with the
    running statistics m', v' of the pretraining there. The distance is the symmetric Kullback-Leibler divergence

        KL(here, there) + KL(there, here) = (v + (m - m')^2) / (2 v') + (v' + (m - m')^2) / (2 v) - 1

    and of all channels of all layers the median counts: one that is silent on one side has a divergence without bound,
    which would decide a mean. Models and sizes of images differ in it by a factor of ten, so what is returned is its
    ratio to that of noise, uniform pixels, which is no photograph to any model: 1 is as far away as noise. None: the
    model has no BatchNorm with running statistics.

    Li et al. 2016 (arXiv 1603.04779) show that these statistics tell domains apart; the divergence by channel is that
    of Pan et al. 2018 (arXiv 1807.09441, section 4.3), who take its mean. Median and ratio are our own.

    Args:
        backend: computes the model.
        model: with the values that it starts from, which it has afterwards too.
        specs: of its parameters and buffers.
        head: names of the parameters that receive gradients meanwhile; no step is taken.
        batch: of pixels, in the device's memory.
        noise: likewise, of uniform pixels.
    """
    layers = defaultdict[str, dict[str, str]](dict)
    for spec in specs:
        leaf = spec.name.rpartition(".")[2]
        if spec.role == "statistic" and leaf in (MEAN, VARIANCE):
            layers[spec.module][leaf] = spec.name
    pairs = {module: names for module, names in layers.items() if len(names) == 2}
    if not pairs:
        return None
    start = backend.dump_arrays(model)
    backend.set_phase(model, frozenset(head), frozenset(pairs))
    medians = []
    for handle in (batch, noise):
        seen = [start]
        for _ in range(2):
            backend.fetch(backend.backward(model, handle))
            seen.append(backend.dump_arrays(model))
        backend.load_arrays(model, start)
        values = [divergence(seen, names) for names in pairs.values()]
        there = [value for value in values if value is not None]
        medians.append(float(np.median(np.concatenate(there))) if there else 0.0)
    return medians[0] / medians[1] if medians[1] else None


def divergence(seen: Sequence[Mapping[str, Array]], names: Mapping[str, str]) -> NDArray[np.float64] | None:
    """Return the divergence of each channel of a layer, [C]; None where the batch did not move its statistics.

    A batch with the statistic b moves the running one r to ``r + a (b - r)``, with the layer's momentum a. Seen twice,
    it moves it by ``a (b - r)`` and then by ``(1 - a)`` times that, so that two differences give a, and a gives b.

    Args:
        seen: the model's values before a batch, after it, and after the same batch once more.
        names: of the running mean and variance.
    """
    first, second, third = (
        np.stack([arrays[names[leaf]].astype(np.float64) for leaf in (MEAN, VARIANCE)]) for arrays in seen
    )
    moved, again = second - first, third - second
    if not (square := float((moved * moved).sum())):
        return None
    momentum = 1 - float((moved * again).sum()) / square
    if not 1e-4 < momentum <= 1 + 1e-4:  # the layer does not average by a constant factor
        return None
    (there, spread_there), (here, spread_here) = first, first + moved / momentum
    known, new = np.maximum(spread_there, TINY), np.maximum(spread_here, TINY)
    gap = (here - there) ** 2
    return np.asarray((new + gap) / (2 * known) + (known + gap) / (2 * new) - 1)
