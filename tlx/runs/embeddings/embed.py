"""Embed any number of images: streamed, in shards, and going on where it was stopped."""

from __future__ import annotations

import hashlib
import os
import time
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from tlx.data.images import EXTENSIONS
from tlx.errors import DataError, DataNotFound, TlxError, closest, shown
from tlx.leases import Lease
from tlx.manifest import RECIPE
from tlx.recipe import Recipe
from tlx.runs.classify import BadImages, Outcome, classify
from tlx.runs.display import LINE_SECONDS, Display
from tlx.runs.embeddings.embedder import Embedder, open_embedder
from tlx.runs.embeddings.file import FORMAT, SUFFIX, Dtype, Header, check_out, import_pyarrow, read_header
from tlx.runs.embeddings.items import Found, Item, Shard, find_items, parse_shard
from tlx.runs.embeddings.parts import LISTED, Bad, Part, Parts, digest_of, folder_of, parts_of, remove
from tlx.runs.inputs import Input
from tlx.training.build import versions
from tlx.training.metrics import Extracted

PART_ROWS = 512  # of a part, at least a batch: what a kill costs
PART_BYTES = 2**24  # of the vectors of a part
MENDED = "mend them and repeat the call, which computes only these, or leave them out with on_bad_image='skip'"


@dataclass(frozen=True, slots=True)
class Embedded:
    """What `tlx.embed` wrote.

    Attributes:
        out: the file.
        images: how many rows it has.
        width: how many numbers a vector has.
        unreadable: how many images could not be read, and have no row.
        computed: how many rows were computed now, and not by an earlier call that was stopped.
        facts: the metadata of the file.
    """

    out: Path
    images: int
    width: int
    unreadable: int
    computed: int
    facts: dict[str, Any]

    def __repr__(self) -> str:
        return f"<Embedded {self.images:,} x {self.width} in {self.out}>"


def embed(
    source: str | Path,
    data: Any,
    out: str | Path,
    *,
    backend: str | None = None,
    weights: str | None = None,
    dtype: str = "float32",
    shard: str | None = None,
    on_bad_image: str | None = None,
    data_root: str | Path | None = None,
    quiet: bool = False,
    model: Any = None,
    head: Any = None,
) -> Embedded:
    """Write a vector for each image to a Parquet file: what enters the head of a model, in eval mode.

    Rows are in the order of the data. The columns are index (the place in the data, int64), path (text), label (text,
    or null), part ("train", "val", "test" or "all") and vector (a list of one length). Images pass through while they
    are found, so memory does not grow with their number. A call that was stopped or killed goes on when it is repeated.

    Args:
        source: the folder of a finished run; or the name of a model, such as "resnet18" or "timm:convnext_tiny".
        data: whatever `tlx.predict` and `tlx.load_data` take; of a data set every part.
        out: the file, whose name ends in .parquet. Until it is whole, its parts lie in a folder beside it.
        backend: where it computes; default: the backend that trained, and of a model by its name torch.
        weights: of a model by its name: as in a recipe; default: those of ImageNet.
        dtype: "float32", or "float16", which takes half the room.
        shard: "3/16" embeds only the third of sixteen shards: every sixteenth image. See `tlx.load_embeddings`.
        on_bad_image: "skip" leaves out images that cannot be read, counts and names them; "error" raises a DataError
            once all others are computed. Default: as the run's recipe says, else "error".
        data_root: folder that holds the data, as in a recipe.
        quiet: show nothing on stderr.
        model: the module again, where the run's was a Python object.
        head: likewise.

    Raises:
        RunNotFound: `source` is neither a finished run nor the name of a model.
        DataError: there is no image, or some cannot be read.
        TlxError: `out` exists and is something else, or cannot be written; a vector is not finite, or does not fit
            float16; an option is unknown; or pyarrow is not installed.
    """
    target, kind, piece = check_out(out, (SUFFIX,)), check_dtype(dtype), parse_shard(shard)
    import_pyarrow()
    run = open_embedder(source, backend, weights, model=model, head=head)
    rule = _rule(on_bad_image, run)
    display = Display(quiet)
    before = read_header(target) if os.path.lexists(target) else None  # an error where it is something else
    look = partial(find_items, data, data_root, run.recipe.max_pixels, run.recipe.label_separator)
    found = look()
    width = run.width
    rows = max(1, min(PART_ROWS, PART_BYTES // (4 * width)))
    rows = -(-rows // run.recipe.batch_size) * run.recipe.batch_size  # so that batches never depend on what was there
    facts = {**run.identity(), **_facts(run, data, kind, piece), "width": width}
    job = {**facts, "part_rows": rows, "batch_size": run.recipe.batch_size}
    if before is None:
        with parts_of(target, width, kind, job) as parts:
            if isinstance(data, Iterator):  # which cannot be gone through again for what others leave
                parts.alone()
            if not os.path.lexists(target):  # otherwise another process has just joined them
                work, computed = _Work(run, found, piece, parts, rows, rule == "skip", display), 0
                while held := work.all():
                    display.say(f"{len(held)} parts of {rows} images are with other processes")
                    parts.wait(held)
                    computed += work.computed
                    found = look()
                    work = _Work(run, found, piece, parts, rows, rule == "skip", display)
                unreadable = {"count": work.unreadable, "first": work.first}
                facts |= {"rows": work.rows, "unreadable": unreadable, "inputs": work.digest() if work.sure else None}
                parts.finish(target, work.parts_seen, facts)
                computed += work.computed
                return Embedded(Path(out), work.rows, width, work.unreadable, computed, facts)
        before = read_header(target)
    done = _finished(before, Path(out), facts, found, piece, rows, display)
    if folder_of(target).exists():  # it was killed as it removed them
        with suppress(TlxError), parts_of(target, width, kind, job) as parts:
            remove(parts)
    return done


def check_dtype(dtype: Any) -> Dtype:
    """Return a dtype of vectors; raises TlxError where there is none of that name."""
    known: tuple[Dtype, ...] = get_args(Dtype)
    if not isinstance(dtype, str) or dtype not in known:
        raise TlxError(f"Unknown dtype {shown(dtype)}.{closest(str(dtype), known)}")
    return next(name for name in known if name == dtype)


def _rule(on_bad_image: Any, run: Embedder) -> str:
    if on_bad_image is None:
        file = run.run_dir / RECIPE
        return Recipe.from_toml(file, used=("on_bad_image",)).on_bad_image if file.is_file() else "error"
    if on_bad_image not in ("error", "skip"):
        raise TlxError(f"on_bad_image is {shown(on_bad_image)}; expected error or skip")
    return str(on_bad_image)


def _facts(run: Embedder, data: Any, dtype: Dtype, shard: Shard) -> dict[str, Any]:
    """Return what a file says beside the model's identity; the versions are those that its numbers may depend on."""
    named = os.fspath(data) if isinstance(data, (str, os.PathLike)) else None
    return {
        "format": FORMAT,
        "weights": run.weights,
        "backend": run.backend.name,
        "device": run.recipe.device,
        "precision": run.recipe.precision,
        "versions": {**versions(), **run.backend.capabilities().versions},
        "data": named.encode("utf-8", "backslashreplace").decode() if named is not None else None,
        "dtype": dtype,
        "shard": str(shard),
    }


def _finished(
    before: Header, out: Path, facts: dict[str, Any], found: Found, shard: Shard, rows: int, display: Display
) -> Embedded:
    """Return what an earlier call wrote already; TlxError where the file is another one, which is not replaced."""
    fix = "remove it, or choose another name"
    for name, value in facts.items():
        if before.facts.get(name) != value and name != "versions":
            raise TlxError(f"{out} exists, and is of another {name}", fix=fix)
    every, sure, digest = (item for item in found.items if shard.has(item.index)), True, hashlib.sha256()
    for chunk in iter(lambda: list(islice(every, rows)), []):
        inputs, certain = digest_of(chunk)
        digest.update(inputs.encode())
        sure = sure and certain
    if not sure or digest.hexdigest() != before.facts.get("inputs"):
        what = "its images have changed since" if sure else "nothing tells whether it is of the same images"
        raise TlxError(f"{out} exists, and {what}", fix=fix)
    display.say(f"{out} is whole already: {before.rows:,} images")
    unreadable: Any = before.facts.get("unreadable")
    count = unreadable.get("count") if isinstance(unreadable, dict) else 0
    return Embedded(out, before.rows, before.width, count if isinstance(count, int) else 0, 0, before.facts)


class _Work:
    """Goes through the images part by part: takes the parts that are there, and computes the others."""

    def __init__(
        self, run: Embedder, found: Found, shard: Shard, parts: Parts, size: int, skip: bool, display: Display
    ) -> None:
        self.run, self.found, self.shard, self.parts, self.skip, self.display = run, found, shard, parts, skip, display
        self.size = size
        self.rows = self.computed = self.seen = 0
        self.sure = True
        self.parts_seen = 0
        self.unreadable = 0
        self.first: list[list[Any]] = []  # of them: index, name and problem
        self.images = BadImages(display)
        self._inputs = hashlib.sha256()
        self._waiting: deque[tuple[int, list[Item], str, Lease]] = deque()  # parts that are being computed
        self.held: list[int] = []  # parts that other processes compute
        self._started = self._said = time.monotonic()

    def digest(self) -> str:
        """Return what tells the images from others."""
        return self._inputs.hexdigest()

    def all(self) -> list[int]:
        """Go through all images; return the parts that other processes compute, after which there is another look."""
        try:
            with self.display.live(self.run.recipe), closing(classify(self.run, self._inputs_to_compute())) as outcomes:
                pending: list[Outcome] = []
                for outcome in outcomes:
                    pending += outcome
                    while self._waiting and len(pending) >= len(self._waiting[0][1]):
                        number, items, inputs, lease = self._waiting[0]
                        self._write(number, items, pending[: len(items)], inputs)
                        lease.release()
                        self._waiting.popleft()
                        pending = pending[len(items) :]
        finally:
            for *_, lease in self._waiting:
                lease.release()
        if self.held:
            return self.held
        for note in self.found.notes.all():
            self.display.say(f"note: {note}")
        if not self.seen:
            expected = f"expected photos ({', '.join(sorted(EXTENSIONS))}), or a data set"
            raise DataError(f"no images: {expected}")
        self._conclude()
        return []

    def _inputs_to_compute(self) -> Generator[Input, None, None]:
        """Yield the images of the parts that are not there yet."""
        every = self._of_shard()
        for chunk in iter(lambda: list(islice(every, self.size)), []):
            number, self.parts_seen = self.parts_seen, self.parts_seen + 1
            inputs, sure = digest_of(chunk)
            self.sure = self.sure and sure
            self._inputs.update(inputs.encode())
            if not sure:
                self.parts.alone()
            if (part := self._known(number, inputs)) is not None:
                self._take(part, chunk)
                continue
            if (lease := self.parts.lease(number)) is None:
                self.held.append(number)
                continue
            if (part := self._known(number, inputs)) is not None:  # written between the look and the lease
                lease.release()
                self._take(part, chunk)
                continue
            self._waiting.append((number, chunk, inputs, lease))
            for item in chunk:
                yield item.input

    def _known(self, number: int, inputs: str) -> Part | None:
        """Return a part that is there, of the same images."""
        part = self.parts.read(number) if self.sure else None
        return part if part is not None and part.inputs == inputs and (self.skip or not part.bad) else None

    def _of_shard(self) -> Iterator[Item]:
        for item in self.found.items:
            self.seen += 1
            if self.shard.has(item.index):
                yield item

    def _take(self, part: Part, chunk: list[Item]) -> None:
        self.rows += part.rows
        names = {item.index: item.input for item in chunk}
        for bad in part.bad:
            self._add(bad, names[bad.index] if bad.index in names else chunk[0].input)

    def _write(self, number: int, items: list[Item], outcomes: list[Outcome], inputs: str) -> None:
        good: list[Item] = []
        rows: list[NDArray[np.float64]] = []
        bad: list[Bad] = []
        for item, (_, outcome) in zip(items, outcomes, strict=True):
            if isinstance(outcome, DataError):
                problem = outcome.problem.rstrip(".")
                bad.append(Bad(item.index, item.input.name, problem, isinstance(outcome, DataNotFound)))
                self._add(bad[-1], item.input)
            else:
                good.append(item)
                rows.append(outcome)
                self.images.say()
        vectors = np.array(rows).reshape(len(rows), self.parts.width)
        self.parts.write(number, good, self._narrow(vectors, good), bad, inputs, self.sure)
        self.rows += len(good)
        self.computed += len(good)
        self._progress()

    def _narrow(self, vectors: NDArray[np.float64], items: list[Item]) -> NDArray[Any]:
        with np.errstate(over="ignore"):
            narrow = vectors.astype(self.parts.dtype)
        finite = np.isfinite(narrow).all(axis=1)
        if not finite.all():
            name = items[int(finite.argmin())].input.name
            raise TlxError(f"the vector of {name} does not fit {self.parts.dtype}", fix="use float32")
        return narrow

    def _add(self, bad: Bad, item: Input) -> None:
        self.unreadable += 1
        self.first += [[bad.index, bad.name, bad.problem]] if self.unreadable <= LISTED else []
        self.images.add(item, DataNotFound(bad.problem) if bad.missing else DataError(bad.problem))

    def _conclude(self) -> None:
        """Say which images cannot be read, or raise, as the rule has it."""
        try:
            self.images.conclude(self.rows + self.unreadable, allowed=self.skip)
        except DataNotFound:
            raise
        except DataError as error:
            if not self.rows:
                raise
            raise DataError(error.problem, fix=MENDED) from error

    def _progress(self) -> None:
        """Show how far it has come, on a bar where the number of images is known."""
        now, total = time.monotonic(), self.found.total
        done = self.rows + self.unreadable
        if total is not None:
            self.display.event(Extracted("images", done, max(done, total // self.shard.of), now - self._started))
        elif now - self._said > LINE_SECONDS:
            self._said = now
            self.display.say(f"{done:,} images, {self.computed / (now - self._started):.0f} images/s")
