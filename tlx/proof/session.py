"""One capture in progress: the backend, the model with its values, and the batches that every stage uses."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import Any, cast

import numpy as np

from tlx import rng
from tlx.backend import Array, Backend, Batch, Model, Precision, Probe
from tlx.backend.protocol import FLOAT32_MAX
from tlx.data.images import ArrayImages
from tlx.data.load import Data
from tlx.errors import TlxError
from tlx.models.zoo import Architecture
from tlx.proof.artifact import MODULE, MUST_AGREE, Capture, Writer, hexed
from tlx.proof.measure import sha256
from tlx.proof.randomness import share
from tlx.proof.recorder import RecordedLoader, ServedLoader
from tlx.recipe import Recipe
from tlx.training import build
from tlx.training.loop import Training

LOCKED = 5  # batches of the step-locked comparison
TESTED = 4  # batches of the test part
LOSS = "cross-entropy with the targets where a batch has any, else with its labels; the mean over the samples"
LOSS_OF_SEVERAL = (
    "binary cross-entropy of each class, with the targets where a batch has any, else with its labels of 0 and 1; the "
    "mean over the samples and the classes"
)


@dataclass
class Session:
    """What is captured, on which backend, and where it goes."""

    backend: Backend
    recipe: Recipe  # shortened
    classes: tuple[str, ...]
    data: Data | None  # None: the reference serves the batches
    reference: Capture | None  # the capture whose modules are replayed here
    copy_weights: bool  # start from the reference's values
    writer: Writer
    feed: Callable[[Any], Any]  # replaces the training loader; for planting faults
    quick: bool = False
    serves: bool = False  # what is written is also for engines outside tlx, which are compared at every step
    whole: bool = True  # also at a second size, and every module by itself
    fitting: set[str] = field(default_factory=set)  # names of initial values that were looked at
    ended: str = ""  # the hash of the values that P7 judges, where they are those of the reference's trajectory

    @property
    def served(self) -> bool:
        """Whether weights and batches come from the reference, so that neither data nor weights are needed here."""
        return self.data is None

    def build(self, precision: Precision) -> tuple[Model, Architecture]:
        """Build the recipe's model in a precision."""
        return build.build_model(replace(self.recipe, precision=precision), self.backend, len(self.classes))

    @cached_property
    def initial(self) -> dict[str, Array]:
        """The values everything starts from: numbers that float32 holds exactly."""
        if self.served or self.copy_weights:
            assert self.reference is not None
            return self.reference.records["P1"].arrays()
        if self.recipe.weights == "own":  # with the head, which a run would draw anew
            return self.backend.dump_arrays(self.model)
        recipe = replace(self.recipe, weights=self.recipe.weights or "none")
        return build.start_of(recipe, self.backend, self.model, self.arch, self.classes)[0]

    @cached_property
    def _built(self) -> tuple[Model, Architecture]:
        return self.build("float64")

    @property
    def model(self) -> Model:
        """The model in float64, which most stages share."""
        return self._built[0]

    @property
    def arch(self) -> Architecture:
        """The architecture of the model."""
        return self._built[1]

    def start(self, model: Model, *, nudged: bool = False) -> dict[str, Array]:
        """Load the initial values; nudged, every number of the parameters is one float32 unit off, up or down."""
        arrays = {}
        for spec in self.backend.param_specs(model):
            value = self.initial.get(spec.name)
            if value is None or value.shape != spec.shape:
                found = "nothing" if value is None else list(value.shape)
                problem = f"the weights of the reference do not fit: {spec.name} is {list(spec.shape)}, there {found}"
                raise TlxError(problem, fix="capture both by one recipe")
            if spec.name not in self.fitting:
                fits = np.abs(value) <= FLOAT32_MAX
                if not (fits | np.isinf(value) if spec.role == "statistic" else fits).all():
                    raise TlxError(f"the weights to start from hold numbers in {spec.name} that float32 does not")
                self.fitting.add(spec.name)
            if nudged and spec.role != "statistic":
                up = rng.uniform(0, f"parity/nudge/{spec.name}", spec.shape) < 0.5
                single = value.astype(np.float32)
                value = np.nextafter(single, np.where(up, np.float32(np.inf), np.float32(-np.inf)))
            arrays[spec.name] = np.asarray(value, dtype=spec.dtype)
        self.backend.load_arrays(model, arrays)
        if share(self, model):
            self.backend.load_arrays(model, arrays)
        return arrays

    @property
    def probe(self) -> Probe:
        """The probe of the model in float64."""
        return self.probe_of(self.model)

    def probe_of(self, model: Model) -> Probe:
        """Return the backend's probe of a model."""
        return cast(Probe, self.backend.probe(model))  # type: ignore[attr-defined]

    def train_everything(self, model: Model) -> None:
        """Let all parameters train, with batch statistics."""
        specs = self.backend.param_specs(model)
        self.backend.set_phase(
            model,
            frozenset(s.name for s in specs if s.role != "statistic"),
            frozenset(s.module for s in specs if s.role == "statistic"),
        )

    def training(self, model: Model, backend: Any) -> Training:
        """Return the production job, with the reference's batches where it serves them."""
        training = build.make_training(self.recipe, backend, self.data or self._stand_in(), model, self.arch)
        if not self.served:
            return replace(training, loader=self.feed(training.loader))
        assert self.reference is not None
        train, val = (cast(Any, ServedLoader(self.reference, part)) for part in ("train", "val"))
        return replace(training, loader=train, val=val if val.steps else None)

    def _stand_in(self) -> Data:
        """Return data of the reference's length, so that the schedule has its steps; its pixels are never read."""
        assert self.reference is not None
        count = sum(len(record.facts["labels"]) for record in self.reference.stage("P2/train/0000"))
        size = self.recipe.pixels.size
        images = ArrayImages(np.zeros((count, 3, size, size), np.uint8), np.zeros(count, np.int64), ["0"] * count)
        return Data("reference", self.classes, images, None, None, ())

    def held_out(self) -> Any:
        """Return batches without augmentation: of the test part, or of the training part where there is no other."""
        if self.data is None:
            return ServedLoader(self.reference, "test")
        return build.make_loader(self.recipe, self.data.test if self.data.test is not None else self.data.train)

    @cached_property
    def tests(self) -> list[Batch]:
        """The first batches of the test part, written down as they are read."""
        return list(islice(RecordedLoader(self.held_out(), self.writer, "test").epoch(0), TESTED))

    @cached_property
    def batches(self) -> list[Batch]:
        """The first training batches, all of full size."""
        loader = self.training(self.model, self.backend).loader
        return list(islice(loader.epoch(0), min(LOCKED, max(loader.steps - 1, 1))))

    def manifest(self, stages: tuple[str, ...], quick: bool) -> dict[str, Any]:
        """Return the capture's manifest: what must be equal in a comparison, and where this one was made."""
        recipe = self.recipe.to_dict()
        capabilities = self.backend.capabilities()
        return {
            "must": {**self._must_agree(recipe), "stages": sorted(stages)},
            "first_data": self._first_data(),
            "recipe": self._told(recipe),
            "backend": self.backend.name,
            "versions": dict(capabilities.versions),
            "device": self.recipe.device,
            **getattr(self.backend, "spread", {}),
            "precisions": list(capabilities.precisions[self.recipe.device]),
            "python": platform.python_version(),
            "numpy": np.__version__,
            "machine": platform.machine(),
            "quick": quick,
            "loss": LOSS_OF_SEVERAL if any(batch.labels.ndim == 2 for batch in self.tests[:1]) else LOSS,
            "planned": self.served,  # these two keys have the names that tlx 0.1.0 gave them
            "replayed": self.reference.manifest["inputs"] if self.reference is not None else None,
            "inputs": sha256(np.array([sha256(a) for a in self.initial.values()])),
        }

    def _told(self, recipe: dict[str, Any]) -> dict[str, Any]:
        """Return what the recipe says; of inputs of the user's own it says nothing."""
        unseen = getattr(self.backend, "unseen", ())
        return {name: value for name, value in recipe.items() if value is not None and name not in unseen}

    def _first_data(self) -> str | None:
        """The fingerprint as tlx 0.1.0 made it, for a comparison with a capture of that time."""
        if self.data is None:
            assert self.reference is not None
            return self.reference.manifest.get("first_data")
        return self.data.first_fingerprint()

    def _must_agree(self, recipe: dict[str, Any]) -> dict[str, Any]:
        if self.data is None:
            assert self.reference is not None
            return dict(self.reference.manifest["must"])
        must = {name: hexed(recipe[name]) for name in MUST_AGREE}
        if not isinstance(self.recipe.model, str):
            must["model"] = MODULE  # whose class may have another name in a port
        own = getattr(self.backend, "must_agree", {})  # inputs of the user's own
        return {**must, "classes": list(self.classes), "data": self.data.fingerprint, **own}
