"""Write a capture that `tlx parity compare` reads, from any engine: JAX, Keras, MLX, ONNX Runtime, a loop by hand.

This file needs NumPy and nothing else. Copy it into your project. The format: docs/capture.md of tlx.

    reference = Reference("A")                      # a capture that tlx, or this file, wrote
    with CaptureWriter("B", "jax 0.6.2", reference=reference) as cap:
        model = port(reference.weights)
        cap.weights(model.arrays())
        cap.logits(model(reference.inputs))         # in eval mode
        for inputs, labels, _ in reference.steps():
            loss = train_step(model, inputs, labels)
            cap.step(loss, model.arrays(), optimizer_arrays(), lr=0.01)

    tlx parity compare A B
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

FORMAT, BUCKETS = 1, 1024
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, RGB
Array = np.ndarray[Any, Any]


class CaptureError(ValueError):
    """What was asked for cannot be recorded or read; says what, and what to do."""


class Batch(NamedTuple):
    """What enters the network, float64 [N, 3, height, width], and what the loss compares its logits with."""

    inputs: Array
    labels: Array  # int64 [N]; of 0 and 1 [N, classes] where several may apply: the loss is then binary cross-entropy
    targets: Array | None = None  # float64 [N, classes]: smoothed or mixed labels, which the loss takes instead


class Reference:
    """A capture to start from: its weights, and what entered the network."""

    def __init__(self, folder: str | Path) -> None:
        """Read a capture's manifest and trace; raises CaptureError where they are damaged or no capture."""
        self.folder = Path(folder)
        try:
            self.manifest: dict[str, Any] = json.loads((self.folder / "manifest.json").read_text("utf-8"))
            records = map(json.loads, (self.folder / "trace.jsonl").read_text("utf-8").splitlines())
            self._records = {str(r["key"]): {part: dict(r[part]) for part in ("facts", "files")} for r in records}
            found = self.manifest["format"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise CaptureError(f"{folder} holds no finished capture: {error}") from error
        if found != FORMAT:
            raise CaptureError(f"{folder} is a capture of format {found}; this file reads {FORMAT}")

    @property
    def recipe(self) -> dict[str, Any]:
        """What trained, by name: optimizer, rates, schedule. Empty where a loop by hand wrote the capture."""
        return dict(self.manifest.get("recipe", {}))

    @property
    def names(self) -> list[str]:
        """The names of the parameters and buffers; empty where the capture has no weights."""
        return list(self._records["P1"]["files"]) if "P1" in self._records else []

    @property
    def weights(self) -> dict[str, Array]:
        """The initial parameters and buffers by name, in the layout of PyTorch."""
        return self._arrays("P1")

    @property
    def test(self) -> Batch:
        """The batch that stage P3 evaluates."""
        return self._batch("P3/input", "P2/test/0000/0000")

    @property
    def inputs(self) -> Array:
        """What enters the network in stage P3."""
        return self.test.inputs

    @property
    def labels(self) -> Array:
        """The labels of stage P3."""
        return self.test.labels

    @property
    def batches(self) -> list[Batch]:
        """The training batches of stage P4, each to be taken from the initial weights; the first is the main one."""
        count = max(len(self._keys(r"P4/input/\d+")), len(self._keys(r"P8/float64/\d+")), 1)
        return [self._batch(f"P4/input/{n}", f"P2/train/0000/{n:04d}") for n in range(count)]

    def steps(self) -> Iterator[Batch]:
        """Yield the batch of each training step of stage P6."""
        own = self._keys(r"P6/input/\d+")
        for key in own or self._keys(r"P2/train/\d+/\d+"):
            yield self._batch(key, key)

    def known(self, pattern: str, fact: str = "path") -> list[str]:
        """Return the names that a kind of record has: a fact of each, or the names within its layout."""
        names: dict[str, None] = {}
        for key in self._keys(pattern):
            value = self._records[key]["facts"].get(fact, [])
            names |= dict.fromkeys([value] if isinstance(value, str) else [str(entry[0]) for entry in value])
        return list(names)

    def _keys(self, pattern: str) -> list[str]:
        return [key for key in self._records if re.fullmatch(pattern, key)]

    def _batch(self, recorded: str, pixels: str) -> Batch:
        """Return what was recorded as the network's input, or else what the pixels of stage P2 become."""
        if recorded in self._records and not recorded.startswith("P2"):
            arrays = self._arrays(recorded)
            labels = arrays.get("labels", np.zeros(0, np.int64))
            return Batch(arrays["input"], labels, arrays.get("targets"))
        arrays, facts = self._arrays(pixels), self._records[pixels]["facts"]
        given = {name: facts[name] for name in ("mean", "std", "interpolation") if name in facts}
        inputs = preprocessed(arrays["images"], facts["size"], **given)
        return Batch(inputs, np.array(facts["labels"], np.int64), arrays.get("targets"))

    def _arrays(self, key: str) -> dict[str, Array]:
        if key not in self._records:
            raise CaptureError(f"{self.folder} has no record {key!r}; capture it anew, with all stages")
        files = self._records[key]["files"]
        if not all(re.fullmatch(r"\d{6}\.npy", str(file)) for file in files.values()):
            raise CaptureError(f"{self.folder}: {key} names what is no array file, such as 000012.npy")
        return {name: np.load(self.folder / file, allow_pickle=False) for name, file in files.items()}


class CaptureWriter:
    """Writes a capture, stage by stage; any stage may be left out. As a context manager it closes by itself."""

    def __init__(
        self,
        folder: str | Path,
        engine: str,
        precision: str = "float64",
        reference: Reference | str | Path | None = None,
        device: str = "cpu",
    ) -> None:
        """Begin a capture in a new or empty folder.

        Args:
            folder: where it goes.
            engine: what computes, and its version, such as "jax 0.6.2".
            precision: "float64" or "float32".
            reference: the capture that this one will be compared with. Names are then checked as they are recorded.
            device: where it computes.
        """
        if precision not in ("float64", "float32"):
            raise CaptureError(f"precision is {precision!r}; a capture is float64 or float32")
        self.folder, self.engine, self.precision, self.device = Path(folder), engine, precision, device
        self.reference = Reference(reference) if isinstance(reference, (str, Path)) else reference
        self.folder.mkdir(parents=True, exist_ok=True)
        if any(self.folder.iterdir()):
            raise CaptureError(f"{folder} is not empty, and nothing is overwritten; choose another folder")
        self._lines: list[str] = []
        self._files, self._inputs = 0, ""  # how many there are, and a hash of the weights
        self._calls: dict[tuple[str, str], int] = {}  # (stage, path) -> how often it was called
        self._steps = {False: 0, True: 0}  # nudged or not
        self._passes: dict[int, dict[str, dict[str, Any]]] = {}  # batch -> kind -> name -> value
        self._stages: set[str] = set()
        self._known = self.reference.names if self.reference else []
        self._slots = self.reference.known(r"P6/\d+", "slots") if self.reference else []

    def weights(self, arrays: Mapping[str, Any]) -> None:
        """Record all parameters and buffers that everything starts from, in PyTorch's layout (stage P1)."""
        values = _plain(arrays)
        self._check(values, self._known, "weights")
        content = b"".join(name.encode() + array.tobytes() for name, array in values.items())
        self._inputs = hashlib.sha256(content).hexdigest()
        self._add("P1", {"specs": []}, values)

    def output(self, path: str, array: Any, *, training: bool = False) -> None:
        """Record what the module at a path gives: for `Reference.test` (P3), or while training on `batches[0]` (P4).

        Images are [N, channels, height, width]. A path recorded again is its second call; a tuple is one call's.
        """
        stage = "P4" if training else "P3"
        self._check([path], self.reference.known(rf"{stage}/visit/\d+") if self.reference else [], "output")
        number = self._calls[stage, path] = self._calls.get((stage, path), 0) + 1
        place = sum(count for (of, _), count in self._calls.items() if of == stage) - 1
        facts = {"path": path, "kind": "", "call": number}
        several = isinstance(array, (tuple, list))
        outputs = {f"output.{n}": part for n, part in enumerate(array)} if several else {"output": array}
        self._add(f"{stage}/visit/{place:04d}", facts, _plain(outputs))

    def logits(self, array: Any) -> None:
        """Record the network's output for `Reference.test`, in eval mode (P3)."""
        self._add("P3/logits", {}, _plain({"logits": array}))

    def loss(self, value: Any, batch: int = 0) -> None:
        """Record the loss, the mean over the samples, of a training batch: `Reference.batches[batch]` (P4)."""
        self._pass(batch, "loss")[""] = float(value)

    def gradient(self, name: str, array: Any, batch: int = 0) -> None:
        """Record the gradient of that loss to a parameter (P4). A float32 engine is judged best by all batches."""
        self._check([name], self._known, "gradient")
        self._pass(batch, "gradients").update(_plain({name: array}))

    def buffer(self, name: str, array: Any, batch: int = 0) -> None:
        """Record a running statistic after that training batch (P4)."""
        self._check([name], self._known, "buffer")
        self._pass(batch, "buffers").update(_plain({name: array}))

    def step(
        self,
        loss: Any,
        parameters: Mapping[str, Any] | None = None,
        optimizer: Mapping[str, Any] | None = None,
        *,
        gradients: Mapping[str, Any] | None = None,
        average: Mapping[str, Any] | None = None,
        lr: float | Sequence[float] | None = None,
        weight_decay: float | Sequence[float] | None = None,
        batch: Batch | None = None,
        nudged: bool = False,
    ) -> None:
        """Record a training step after it was taken (P6). What is not given is not compared.

        Args:
            loss: the mean over the samples, before the update.
            parameters: all parameters, and buffers, after the update.
            optimizer: its state, such as {"fc.weight/momentum": array}.
            gradients: as the optimizer got them, so after clipping.
            average: the moving average of the parameters after the update.
            lr: the rate of this step, or one for each parameter group; compared bit for bit.
            weight_decay: likewise.
            batch: what was trained on, for the capture of a loop by hand that is to be a reference.
            nudged: this step belongs to a second run, from `nudged` weights: it shows what rounding does to the loop.
        """
        number = self._steps[nudged]
        facts: dict[str, Any] = {"loss": float(loss).hex(), "events": []}
        if lr is not None:
            facts["hyper"] = _hyper(lr, weight_decay)
        arrays = {}
        given = {"values": parameters, "slots": optimizer, "gradients": gradients, "average": average}
        for kind, named in given.items():
            if named is not None:
                self._check(named, self._slots if kind == "slots" else self._known, f"step: {kind}")
                facts[kind], arrays[kind] = bundle(_plain(named))
        if batch is not None and not nudged:
            entering = {"input": batch.inputs, "labels": batch.labels, "targets": batch.targets}
            self._add(f"P6/input/{number:04d}", {}, _plain({k: v for k, v in entering.items() if v is not None}))
        self._add(f"P6/{'envelope/0/' if nudged else ''}{number:04d}", facts, arrays)
        self._steps[nudged] += 1

    def close(self) -> None:
        """Finish the capture: without its manifest it is none."""
        for batch, kinds in self._passes.items():
            self._write_pass(batch, kinds)
        if not self._stages:
            raise CaptureError("nothing was recorded; call weights, output, logits, loss, gradient or step")
        (self.folder / "trace.jsonl").write_text("".join(self._lines), "utf-8")
        (self.folder / "manifest.json").write_text(json.dumps(self._manifest(), indent=1), "utf-8")

    def __enter__(self) -> CaptureWriter:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is None:
            self.close()
        for number in range(self._files if kind else 0):  # no one can use a capture that ended early
            (self.folder / f"{number:06d}.npy").unlink()

    def _manifest(self) -> dict[str, Any]:
        name, _, version = self.engine.partition(" ")
        must: dict[str, Any] = {"model": "a module", "classes": [], "data": ""}
        of = self.reference.manifest if self.reference else {}
        return {
            "format": FORMAT,
            "engine": self.engine,
            "precision": self.precision,
            "must": {**must, **of.get("must", {}), "stages": sorted(self._stages)},
            "recipe": of.get("recipe", {}),
            "backend": name,
            "versions": {name: version} if version else {},
            "device": self.device,
            "precisions": [self.precision],
            "planned": self.reference is not None,
            "replayed": of.get("inputs"),
            "inputs": self._inputs,
        }

    def _write_pass(self, batch: int, kinds: Mapping[str, Mapping[str, Any]]) -> None:
        facts: dict[str, Any] = {"loss": kinds["loss"][""].hex()} if "loss" in kinds else {}
        if facts and not batch:
            self._add("P4/loss", facts)
        arrays = {}
        for kind in ("gradients", "buffers"):
            if batch:
                facts[kind], arrays[kind] = bundle(kinds.get(kind, {}))
            elif kind in kinds:
                self._add(f"P4/{kind}", {}, kinds[kind])
        if batch:
            self._add(f"P8/{self.precision}/{batch}", facts, arrays)

    def _pass(self, batch: int, kind: str) -> dict[str, Any]:
        return self._passes.setdefault(batch, {}).setdefault(kind, {})

    def _check(self, names: Iterable[str], known: Sequence[str], what: str) -> None:
        """Raise CaptureError for a name that the reference, where there is one that knows any, does not have."""
        for name in names:
            if known and name not in known:
                closest = difflib.get_close_matches(name, known, 3, 0.3) or known[:3]
                raise CaptureError(f"{what}: the reference has no {name!r}. Closest: {', '.join(map(repr, closest))}")

    def _add(self, key: str, facts: Mapping[str, Any], arrays: Mapping[str, Array] | None = None) -> None:
        files = {}
        for name, array in (arrays or {}).items():
            files[name] = f"{self._files:06d}.npy"
            np.save(self.folder / files[name], array, allow_pickle=False)
            self._files += 1
        self._stages.add("P4" if key.startswith("P8") else key.partition("/")[0])
        self._lines.append(json.dumps({"key": key, "facts": facts, "files": files}) + "\n")


def float32_exact(value: float) -> float:
    """Round a number to float32, as tlx rounds rates, decays, momenta and BatchNorm's constants on every backend."""
    return float(np.float32(value))


def nudged(weights: Mapping[str, Array], seed: int = 0) -> dict[str, Array]:
    """Return weights of which each number is moved by one unit in its last place, up or down."""
    draw = np.random.Generator(np.random.PCG64(seed))
    moved = {}
    for name, array in weights.items():
        moved[name] = array
        if array.dtype.kind == "f":
            infinity = np.where(draw.random(array.shape) < 0.5, np.inf, -np.inf).astype(array.dtype)
            moved[name] = np.nextafter(array, infinity)
    return moved


def preprocessed(images: Array, size: int, mean: Any = MEAN, std: Any = STD, interpolation: str = "bilinear") -> Array:
    """Return uint8 pixels [N, 3, h, w] as they enter the network: 0 to 1, normalised, enlarged to `size`."""
    shift, scale = (np.array(values).reshape(1, 3, 1, 1) for values in (mean, std))
    rows, columns = (_enlarging(side, size, interpolation) for side in images.shape[2:])
    return np.asarray(rows @ ((images / 255 - shift) / scale) @ columns.T)


def _enlarging(old: int, new: int, interpolation: str) -> Array:
    place, pixels = (np.arange(new) + 0.5) * old / new - 0.5, np.eye(old)
    place = np.maximum(place, 0) if interpolation == "bilinear" else place
    near = np.floor(place).astype(int)[:, None] + np.arange(-1, 3)
    far = np.abs(place[:, None] - near)
    cubic = np.where(far <= 1, (1.25 * far - 2.25) * far * far + 1, ((-0.75 * far + 3.75) * far - 6) * far + 3)
    shares = np.maximum(1 - far, 0) if interpolation == "bilinear" else cubic
    return np.asarray((pixels[np.clip(near, 0, old - 1)] * shares[..., None]).sum(1))


def sketch(array: Array) -> Array:
    """Stand for an array by at most 1024 numbers: each element, with a random sign, is added to one of the buckets."""
    flat = np.asarray(array, np.float64).ravel()
    if flat.size <= BUCKETS:
        return flat.copy()
    signed = np.zeros(-(-flat.size // BUCKETS) * BUCKETS)
    signed[: flat.size] = flat * _signs(flat.size)
    return np.asarray(signed.reshape(-1, BUCKETS).sum(0))


def _signs(count: int) -> Array:
    digest = hashlib.sha256(b"tlx\x000\x00sketch").digest()
    words = np.random.Philox(key=np.frombuffer(digest[:16], "<u8"), counter=0).random_raw(-(-count // 64))
    return 2.0 * np.unpackbits(np.asarray(words, "<u8").view(np.uint8), count=count) - 1


def bundle(arrays: Mapping[str, Array]) -> tuple[list[list[Any]], Array]:
    """Lay the sketches of arrays end to end; return ``[[name, shape, length], ...]`` and the numbers."""
    parts = {name: sketch(array) for name, array in arrays.items()}
    layout = [[name, list(arrays[name].shape), len(part)] for name, part in parts.items()]
    return layout, np.concatenate([*parts.values(), np.zeros(0)])


def _plain(arrays: Mapping[str, Any]) -> dict[str, Array]:
    """Return arrays of numbers in C order; raises CaptureError for anything else."""
    plain = {}
    for name, value in arrays.items():
        array = np.array(value, order="C")
        if array.dtype.kind not in "fiub" or not isinstance(name, str):
            raise CaptureError(f"{name!r} is {array.dtype}; expected an array of numbers")
        plain[name] = array
    return plain


def _hyper(lr: float | Sequence[float], weight_decay: float | Sequence[float] | None) -> list[list[str | None]]:
    """Return the rate and the decay of each group, as `float.hex` writes them."""
    rates = _several(lr)
    decays = [None] * len(rates) if weight_decay is None else _several(weight_decay)
    if len(decays) != len(rates):
        raise CaptureError(f"step: lr has {len(rates)} numbers and weight_decay {len(decays)}; one for each group")
    return [list(pair) for pair in zip(rates, decays, strict=True)]


def _several(value: Any) -> list[str | None]:
    return [float(number).hex() for number in (value if isinstance(value, (list, tuple)) else (value,))]
