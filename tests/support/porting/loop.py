"""Faults outside of the network: in how values are copied, in the loss, the optimizer, the schedule, the average."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from support.porting import mbconv, vit
from support.porting.case import Case, spread
from tlx.backend import Batch, Handle, Hyper, Lazy, Model, OptimizerSpec
from tlx.proof import faults
from tlx.proof.loop_faults import Added, Clipped, FromZero, Kept, LateAverage, LateWarmup, OtherDecay
from tlx.proof.module_faults import Dampening, ZeroedGradients
from tlx.proof.recorder import Proxy


class OtherSpec(Proxy):
    """Makes the optimizer with other scalars."""

    def __init__(self, inner: Any, **scalars: Any) -> None:
        super().__init__(inner)
        self.scalars = scalars

    def optimizer(self, model: Model, spec: OptimizerSpec, groups: Sequence[tuple[str, ...]]) -> Handle:
        return self.inner.optimizer(model, replace(spec, **self.scalars), groups)


class ClippedTwiceAsFar(Proxy):
    """Clips to twice the norm."""

    def update(self, model: Model, optimizer: Handle, max_norm: float | None = None) -> None:
        self.inner.update(model, optimizer, None if max_norm is None else 2 * max_norm)


class AverageWithoutBuffers(Proxy):
    """Averages the parameters, and leaves running statistics as they were at first."""

    def average(self, shadow: Model, model: Model, weight: float) -> None:
        names = [s.name for s in self.inner.param_specs(shadow) if s.role == "statistic"]
        before = self.inner.dump_arrays(shadow)
        self.inner.average(shadow, model, weight)
        after = self.inner.dump_arrays(shadow)
        self.inner.load_arrays(shadow, {**after, **{name: before[name] for name in names}})


class LastPartOnly(Proxy):
    """Empties the gradients before each micro-batch."""

    def backward(self, model: Any, batch: Handle, scale: float = 1.0) -> tuple[Lazy, Lazy]:
        for param in model.module.parameters():
            param.grad = None
        metrics: tuple[Lazy, Lazy] = self.inner.backward(model, batch, scale)
        return metrics


class DecayTimesTen(Proxy):
    """Decays by ten times what it should."""

    def set_hyper(self, optimizer: Handle, values: Sequence[Hyper]) -> None:
        self.inner.set_hyper(optimizer, [replace(h, weight_decay=10 * h.weight_decay) for h in values])


class NextLabel(Proxy):
    """Takes the neighbour's labels."""

    def put(self, model: Model, batch: Batch) -> Handle:
        return self.inner.put(model, replace(batch, labels=batch.labels[::-1].copy()))


def by_hand(reference: Any, candidate: Any, *, skipped: str = "", turned: str = "") -> None:
    """Copy a ViT's values by the names, as a porter's script does, but for one array."""
    theirs = dict(candidate.named_parameters())
    partners = vit.rename()
    for name, value in reference.named_parameters():
        prefix = next(key for key in partners if name == key or name.startswith(f"{key}."))
        target = theirs[partners[prefix] + name.removeprefix(prefix)]
        array = value.detach().numpy()
        array = array.swapaxes(0, 1).copy() if name == turned else array * (name != skipped)
        target.data.copy_(type(target.data)(array) if hasattr(target, "to_global") else value.new_tensor(array))


def without_a_bias(reference: Any, candidate: Any) -> None:
    """Leave a bias at zero."""
    by_hand(reference, candidate, skipped="blocks.1.mlp.fc1.bias")


def with_a_matrix_turned(reference: Any, candidate: Any) -> None:
    """Transpose a square matrix."""
    by_hand(reference, candidate, turned="blocks.0.attn.proj.weight")


ADAM = {"optimizer": "adamw", "lr": 1e-3}
HEAD_FIRST = {"strategy": "head_then_full", "phase_epochs": 2}
VIT = [
    Case(name="a bias not copied", prepare=without_a_bias, copies=False, says=r"blocks\.1\.mlp\.fc1\.bias"),
    Case(
        name="a matrix copied transposed",
        prepare=with_a_matrix_turned,
        copies=False,
        says=r"blocks\.0\.attn\.proj\.weight.*transpose",
    ),
    Case(name="Adam under AdamW's name", plant=faults.CoupledDecay, fields=ADAM, says="optimizer"),
    Case(name="another beta", plant=lambda b: OtherSpec(b, betas=(0.9, 0.99)), fields=ADAM, says="optimizer"),
    Case(name="eps 1e-6 for 1e-8", plant=lambda b: OtherSpec(b, eps=1e-6), fields=ADAM, says="optimizer"),
    Case(
        name="decay on norms and biases",
        plant=faults.DecayOnAll,
        fields={**ADAM, "decay_on": "weights"},
        says="optimizer|decay",
    ),
    Case(name="ten times the decay", plant=DecayTimesTen, fields=ADAM, says="optimizer|decay"),
    Case(
        name="one step count for all",
        plant=faults.OneStepCount,
        fields={**ADAM, **HEAD_FIRST},
        says="optimizer|unfreez",
    ),
    Case(name="the average moves by half", plant=OtherDecay, fields={**ADAM, "ema": 0.9}, says="average"),
    Case(name="the average a step late", plant=LateAverage, fields={"ema": 0.9}, says="average"),
    Case(name="the average begins at zero", plant=FromZero, fields={"ema": 0.9}, says="average"),
    Case(name="gradients kept for the next step", plant=Kept, says="gradient|backward"),
    Case(name="labels of the neighbours", plant=NextLabel, says="loss"),
    Case(name="micro-batches unweighted", plant=Added, fields={**ADAM, "micro_batch": 32}, says="micro|scale"),
]
MBCONV = [
    Case(name="not clipped", plant=partial(Clipped, "clipped not at all"), fields={"clip_norm": 0.1}, says="clip"),
    Case(name="clipped by value", plant=partial(Clipped, "clipped by value"), fields={"clip_norm": 0.1}, says="clip"),
    Case(name="clipped to twice the norm", plant=ClippedTwiceAsFar, fields={"clip_norm": 0.1}, says="clip"),
    Case(name="loss times four", plant=faults.SummedLoss, says="gradients"),
    Case(name="Nesterov", plant=lambda b: OtherSpec(b, nesterov=True), says="optimizer"),
    Case(name="dampening", plant=Dampening, says="optimizer"),
    Case(name="the rate inside the momentum", plant=faults.RateInsideMomentum, says="optimizer|rate|momentum"),
    Case(name="momentum lost", plant=faults.MomentumLost, fields=HEAD_FIRST, says="momentum|optimizer|unfreez"),
    Case(name="a drop one step late", plant=faults.LateRate, says="optimizer|rate"),
    Case(name="warm-up one step late", plant=LateWarmup, fields={"schedule": "cosine", "warmup": 1}, says="rate"),
    Case(name="an unfreeze one step late", plant=faults.LateUnfreeze, fields=HEAD_FIRST, says="unfreez"),
    Case(name="a frozen parameter moves", plant=faults.FrozenMoves, fields=HEAD_FIRST, says="optimizer|fr[oe]{2}ze"),
    Case(name="a frozen norm adapts", plant=faults.FrozenNormAdapts, fields=HEAD_FIRST, says=r"running_|bn\d"),
    Case(name="zero gradients for none", plant=ZeroedGradients, fields=HEAD_FIRST, says="gradient|fr[oe]{2}ze"),
    Case(
        name="the average forgets running statistics", plant=AverageWithoutBuffers, fields={"ema": 0.9}, says="average"
    ),
    Case(
        name="micro-batches forgotten but the last",
        plant=LastPartOnly,
        fields={"micro_batch": 32},
        says="micro|gradient",
    ),
    Case(name="label smoothing forgotten", plant=faults.Unsmoothed, fields={"label_smoothing": 0.1}, says="loss"),
    Case(name="BGR by the loader", plant=faults.SwappedChannels, says="enters the model"),
    Case(
        name="images enlarged by the nearest", plant=faults.Nearest, fields={"image_size": 32}, says="enters the model"
    ),
]


CASES = [(vit.NET, spread("vit", [], VIT)), (mbconv.NET, spread("mbconv", [], MBCONV))]
