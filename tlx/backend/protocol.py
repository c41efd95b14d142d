"""The backend protocol: all that the core asks of a framework, and the values that cross the border.

Only NumPy arrays, Python numbers, opaque handles, the frozen dataclasses below and those of `tlx.backend.optimizers`
cross. The contract:

- The loss is cross-entropy, the mean over the samples of a batch; labels are int64 [N] in ``0 .. classes - 1``; images
  are NCHW. With ``targets`` [N, classes] the loss is ``-(targets * log_softmax(logits)).sum() / N``; their rows may sum
  to anything, so they carry smoothing, mixing and class weights alike.
- Labels of 0 and 1, int64 [N, classes], say of each class whether it applies, and ask for the second loss: binary
  cross-entropy, the mean over the samples and the classes, ``mean(log(1 + exp(z)) - t * z)`` for logits z and targets
  t, which are the labels or ``targets`` [N, classes]; so torch.nn.BCEWithLogitsLoss. Summed over the samples it counts
  each with its mean over the classes. A sample is correct where, for every class, z is above 0 exactly if the label
  is 1. A backend says in `Capabilities.losses` that it has this loss.
- ``backward`` may be called several times before ``update``: gradients add up, each weighted with its ``scale``.
- ``update`` leaves every gradient ``None``, never zero, so a frozen parameter cannot be moved by momentum or decay.
- A group whose parameters are all frozen is legal. Groups never change after ``optimizer``.
- A parameter that is frozen keeps its optimizer state; when it trains again it goes on from there.
- ``evaluate``, ``logits`` and ``features`` change nothing: no parameter, buffer, gradient or mode.
- Losses and counts come back lazy; only ``fetch`` waits for the device.
- A name, shape or dtype that does not match is an error that lists both sides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from tlx.backend.optimizers import Hyper, OptimizerSpec
from tlx.backend.preprocess import Preprocess
from tlx.processes import Channel

Array = NDArray[Any]
Arrays = Mapping[str, Array]
Role = Literal["weight", "bias", "norm", "adapter", "statistic"]
Precision = Literal["float32", "bfloat16", "float64"]
Handle = Any  # a backend's own object, which the core only passes back
# A handle with `module`, the framework's own module; perhaps `notes`, texts to show before a run; perhaps `redrawn`,
# the paths of dropouts whose masks were others in runs that an earlier tlx saved.
Model = Any
Lazy = Any  # a scalar or array that may still be computing on the device


LOSSES = ("cross_entropy", "binary_cross_entropy")  # of one label for each image, and of several
FLOAT32_MAX = float(np.finfo(np.float32).max)


def float32_exact(value: float) -> float:
    """Round to the nearest float32, as every scalar that crosses the border is rounded.

    So a kernel that rounds its scalars to float32 and one that does not compute the same.
    """
    return float(np.float32(value))


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend can do on this machine."""

    versions: Mapping[str, str]
    devices: tuple[str, ...]  # "cpu" first
    precisions: Mapping[str, tuple[str, ...]]  # device -> what runs natively there, fastest first
    optimizers: tuple[str, ...]
    models: tuple[str, ...]
    deterministic: bool  # two runs of one recipe on one machine give the same bits
    losses: tuple[str, ...] = ("cross_entropy",)  # of `LOSSES`


@dataclass(frozen=True, slots=True)
class Lora:
    """Low-rank adapters: an adapted weight W counts as ``W + scale B A``, of which W stays frozen.

    Source: Hu et al. 2021, section 4.1. `tlx.backend.lora` says what A and B are, and which weights have some.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...] | None = None  # shell patterns of module paths; None: every linear layer

    @property
    def scale(self) -> float:
        """The factor ``alpha / rank``, float32-exact."""
        return float32_exact(self.alpha / self.rank)


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model whose head is replaced by a fresh layer of the same kind with `classes` outputs.

    It is one of the zoo, built with `options`, or a copy of `module`, the framework's own object; the latter's values
    are kept, also those of its head where that has as many outputs already. With `hidden` or `dropout` the head becomes
    a chain: for each width a layer, a ReLU and dropout, then the layer with `classes` outputs. Or it becomes a
    copy of `head_module`. What is somebody's own is tried on images of `image_size` pixels, so that what it cannot do
    is said before a run begins; 0: it is not tried. With `lora`, layers outside the head have adapters.
    """

    name: str
    classes: int
    head: str  # module path, such as "fc" or "classifier.1"; "": the module stays as it is
    options: tuple[tuple[str, int], ...] = ()
    module: Any = None
    hidden: tuple[int, ...] = ()
    dropout: float = 0.0
    head_module: Any = None
    image_size: int = 0
    lora: Lora | None = None

    @property
    def own(self) -> bool:
        """Whether code of somebody's own is part of the model."""
        return self.module is not None or self.head_module is not None


@dataclass(frozen=True, slots=True)
class ParamSpec:
    """One parameter or buffer as the core sees it. Parameters come first, in the module's order, then buffers."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    role: Role
    module: str  # path of the module that owns it
    aliases: tuple[str, ...] = ()  # its further names, where modules share it


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """One batch on the host. `images` are uint8 [N, 3, h, w] with geometry already applied."""

    images: Array
    labels: Array  # int64 [N]; or of 0 and 1 [N, classes], where several classes may apply to an image
    indices: Array  # int64 [N]: which samples these are
    preprocess: Preprocess
    key: tuple[int, int, int] = (0, 0, 0)  # (seed, step, first row): places the random stream of dropout masks
    targets: Array | None = None  # float64 [N, classes]: smoothed, mixed or weighted labels; None: the labels
    boundary: str = ""  # path of a module: `images` are what enters it, of any shape [N, ...], and not pixels
    among: Channel | None = None  # these rows are this process's share of a batch of `whole` rows
    whole: int = 0
    absent: bool = False  # this process has no share: its one row keeps the others company, and counts nowhere
    shard: int | None = None  # gradients of one shard are kept apart from those of others until `reduce`

    def __len__(self) -> int:
        return len(self.labels)

    def parts(self, size: int | None) -> Iterator[Batch]:
        """Divide into batches of about equal length, at most `size`; their dropout masks are those of the whole."""
        at = 0
        for count in divided(len(self), size):
            yield self.between(at, at + count)
            at += count

    def between(self, start: int, end: int, **changes: Any) -> Batch:
        """Return the rows from `start` to before `end`, with other fields changed."""
        seed, step, row = self.key
        rows: dict[str, Any] = {
            "images": self.images[start:end],
            "labels": self.labels[start:end],
            "indices": self.indices[start:end],
            "key": (seed, step, row + start),
            "targets": None if self.targets is None else self.targets[start:end],
        }
        return replace(self, **rows | changes)


def divided(count: int, size: int | None) -> list[int]:
    """Divide a number of rows into parts of about equal length, at most `size`."""
    parts = -(-count // size) if size else 1
    return [after - before for before, after in pairwise(count * i // parts for i in range(parts + 1))]


@dataclass(frozen=True, slots=True, eq=False)
class Visit:
    """One call of a module. Calls are in the order in which they end, so a module comes after those within it."""

    path: str  # "": the whole model
    kind: str  # the class's name
    inputs: tuple[Array, ...] = ()  # as they were before the call, in the order of its signature, those of dicts by key
    outputs: tuple[Array, ...] = ()  # those of a dict by key; what is no tensor is left out
    grads: tuple[Array | None, ...] = ()  # of the loss to each output, where a backward pass went through
    call: int = 1  # which call of this module it is
    depth: int = 0  # how many calls of other modules it lies within


@dataclass(frozen=True, slots=True, eq=False)
class Replay:
    """What one module gives by itself; the last three only where an output gradient was given."""

    outputs: tuple[Array, ...]
    input_grads: tuple[Array | None, ...] = ()  # None: of integers, or of what does not reach an output
    gradients: Arrays = field(default_factory=dict)  # by the parameter's full name
    buffers: Arrays = field(default_factory=dict)  # after the call, by full name


@dataclass(frozen=True, slots=True)
class Draw:
    """One call of a dropout in a training pass, in order of execution."""

    path: str  # of the dropout; of a function, that of the module in whose code it is called
    call: int  # its number among the calls of this path in the pass, from 0
    function: bool
    p: float  # the probability of dropping
    shape: tuple[int, ...]  # of what is drawn: axes of the input, the samples' first
    after: str  # the path of the module with parameters that ran last before it; "" where there is none
    around: tuple[str, ...]  # the parameters beside which it acts: one of them must train


@dataclass(frozen=True, slots=True)
class Randomness:
    """Where a pass first draws a random number of the framework's, or of the module's own."""

    path: str  # of the innermost module whose code draws
    kind: str  # the class's name
    before: tuple[str, ...]  # the paths of modules with parameters that ran before, and not after


class Probe(Protocol):
    """Looks into a model, for `tlx parity` only: what an adapter may offer as ``probe(model)``."""

    def record(self, call: Callable[[], Any]) -> tuple[Visit, ...]:
        """Run `call`, which passes through the model once, and return what its modules saw."""

    def gradients(self) -> dict[str, Array]:
        """Copy the gradients that are there."""

    def set_gradients(self, gradients: Arrays) -> None:
        """Set these gradients; all others become None."""

    def replay(
        self,
        path: str,
        inputs: Sequence[Array],
        grads: Sequence[Array | None] = (),
        *,
        call: int = 1,
        training: bool = False,
    ) -> Replay:
        """Run the module at `path` ("": the whole) by itself; changes nothing.

        Args:
            path: as in a visit.
            inputs: in place of the tensors that it got in its own recorded call; everything else is as it was there.
            grads: where given, runs backward from these gradients of its outputs.
            call: which recorded call is meant.
            training: the mode of the module and of all within it.

        Raises:
            Exception: the module cannot be run on these inputs; each framework has its own for that.
        """

    def replay_transposed(self, path: str, inputs: Sequence[Array], *, call: int = 1) -> Array | None:
        """Return the module's first output with its weight transposed; None where that is not square."""


class DrawProbe(Probe, Protocol):
    """A probe that also sees the dropouts of a model, and lets them draw as those of another model."""

    def draws(self, call: Callable[[], Any]) -> tuple[Draw, ...]:
        """Run `call`, a training pass in which everything trains, and return what its dropouts draw.

        From here on functions and dropouts of the user's own take their masks from the core too, where they can.
        """

    def follow(self, partners: Sequence[Draw | None]) -> None:
        """Give each draw, in the order of `draws`, the mask that its partner in another model has; None: its own."""

    def act(self, acting: Sequence[bool]) -> None:
        """Choose which draws act in training, in the order of `draws`, until the next `set_phase`."""

    def random(self, call: Callable[[], Any]) -> Randomness | None:
        """Run `call`, which passes through the model once from the same values, twice under other seeds.

        Returns where the first random number is drawn that is not the core's; None where none is.
        """


@dataclass(frozen=True, slots=True, eq=False)
class FeatureMap:
    """The last map of features of each image that a model computes before it pools it, and what a logit makes of it."""

    path: str  # of the module that gives it out
    values: Array  # [N, channels, rows, columns]
    gradients: Array  # likewise: of one class's logit of each image to that image's values
    logits: Array  # [N, classes], as `Backend.logits` has them


class Explains(Protocol):
    """What `tlx explain` asks of a backend, which may lack it."""

    def feature_map(self, model: Model, batch: Handle, classes: Array | None = None) -> FeatureMap:
        """Look at the last map in eval mode. Changes nothing: no parameter, buffer, gradient, mode or hook.

        Args:
            model: with a head.
            batch: of pixels.
            classes: int64 [N]: whose logits are meant; by default those that are the highest.

        Raises:
            BackendError: the model has no such map of more than one cell.
        """


@runtime_checkable
class Backend(Protocol):
    """All that a framework must do. `tlx.conformance` tests the sentences of this file."""

    name: str

    def capabilities(self) -> Capabilities:
        """Versions, devices, precisions, optimizers and models."""

    def build(self, spec: ModelSpec, device: str, precision: Precision) -> Model:
        """Construct the model with its new head and place it; its values are whatever the framework left there."""

    def param_specs(self, model: Model) -> tuple[ParamSpec, ...]:
        """Describe every parameter and buffer, in the module's order."""

    def load_arrays(self, model: Model, arrays: Arrays) -> None:
        """Set every parameter and buffer, bit for bit. Names, shapes and dtypes must be exactly the model's."""

    def dump_arrays(self, model: Model) -> dict[str, Array]:
        """Copy every parameter and buffer to the host, bit for bit, in the order of `param_specs`."""

    def set_phase(self, model: Model, trainable: frozenset[str], batch_norm: frozenset[str]) -> None:
        """Choose what trains from here on.

        `trainable` names parameters; all others have no gradient. `batch_norm` names the modules with running
        statistics that normalise by the batch and update those statistics; all others use and keep them. Dropout
        acts only where the nearest module around it that holds parameters holds a trainable one.
        """

    def optimizer(self, model: Model, spec: OptimizerSpec, groups: Sequence[tuple[str, ...]]) -> Handle:
        """Create an optimizer over groups of parameter names; every parameter is in exactly one."""

    def set_hyper(self, optimizer: Handle, values: Sequence[Hyper]) -> None:
        """Set each group's learning rate and weight decay, in the order of the groups."""

    def put(self, model: Model, batch: Batch) -> Handle:
        """Copy a batch to the model's device and preprocess it there, in the model's dtype."""

    def backward(self, model: Model, batch: Handle, scale: float = 1.0) -> tuple[Lazy, Lazy]:
        """Train-mode forward, loss times `scale`, gradients. Returns the summed loss and the correct count.

        With `among`, all of that is of this process's rows alone, but BatchNorm that normalises by the batch does so by
        the rows of all processes, which call this together. A row that is `absent` gives zeros.
        """

    def update(self, model: Model, optimizer: Handle, max_norm: float | None = None) -> None:
        """Clip the gradients' joint norm to `max_norm`, take one step, set the gradients to None."""

    def average(self, shadow: Model, model: Model, weight: float) -> None:
        """Move every floating value of `shadow`, a model of the same kind, towards `model`: s += weight * (m - s).

        So equal values stay as they are, bit for bit. Counters are copied. Nothing waits for the device.
        """

    def evaluate(self, model: Model, batch: Handle) -> tuple[Lazy, Lazy, Lazy]:
        """Eval-mode forward. Returns the loss summed over the samples, the correct count, and what `logits` does."""

    def logits(self, model: Model, batch: Handle) -> Lazy:
        """Eval-mode outputs [N, classes]."""

    def boundaries(self, model: Model) -> tuple[str, ...]:
        """Name modules, best first, before which the present phase trains, adapts and drops nothing.

        What enters such a module is the same in training as in evaluation. Whether a batch that begins at that boundary
        then gives what the whole model gives is for the caller to check: a module may use more than its input.
        """

    def features(self, model: Model, batch: Handle, boundary: str = "") -> Lazy:
        """Return what enters the module at `boundary` in eval mode, by default the head: [N, ...]."""

    def dump_optimizer(self, optimizer: Handle) -> dict[str, Array]:
        """Copy the state as ``"<parameter>/<slot>"``, by the slots of the optimizer's spec."""

    def load_optimizer(self, optimizer: Handle, state: Arrays) -> None:
        """Restore what `dump_optimizer` of any backend returned."""

    def fetch(self, lazies: Sequence[Lazy]) -> list[Array]:
        """Wait for the device once and copy the values to the host."""


@runtime_checkable
class Reduces(Backend, Protocol):
    """A backend whose runs may spread over processes; one without this method trains in one, without shards."""

    def reduce(self, model: Model, channel: Channel) -> None:
        """Make each gradient the sum over all processes, which call this after a step's last `backward`.

        All of them then hold the same bits. Where batches had a `shard`, the sum is taken in the order of the shards'
        numbers, so that its bits do not depend on how many processes there are; then this is called with one process
        too. A parameter without a gradient in all processes keeps None. A backend without collectives of its own
        sends the gradients through the channel, as `tlx.conformance.loopback_shares` does.
        """
