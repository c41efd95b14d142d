"""Look at a data set before anything is trained on it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlx.audit.copies import (
    LEAST,
    exact_groups,
    near_groups,
    pairs_by_features,
    pairs_by_hash,
    rows_of_exact,
    rows_of_near,
)
from tlx.audit.facts import ALPHA, ANIMATED, CMYK, DEEP, GREY, PLAIN, ROTATED, Facts, can_hash, facts_of_part
from tlx.audit.judging import features_of_pool, judged
from tlx.audit.pool import RANK, Pool, pooled
from tlx.audit.result import KINDS, Check, Decision, Problem, Row, listed
from tlx.data import Data, FileImages, Images
from tlx.data.file_hashes import FileHashes
from tlx.data.images import MAX_PIXELS, formats_up_to
from tlx.data.multilabel import is_multilabel
from tlx.data.sources.registry import open_source
from tlx.data.sources.source import KEEP
from tlx.errors import DataError, TlxError
from tlx.runs.display import Display
from tlx.runs.extractor import Extractor, open_extractor

READING = "checking the images"
TINY = 32  # pixels of the shorter side
EXTREME = 5.0  # ratio of the sides
FEW = 10  # training images of a class
IMBALANCE = 10.0  # ratio of the largest class to the smallest
USUAL = 0.5  # a property of more than this part of the images is one of the data set, and no problem of an image
EXTRA = 'pip install "tlx[check]"'


def check(
    data: Any,
    *,
    data_root: str | Path | None = None,
    path_column: str | None = None,
    label_column: str | None = None,
    labels: bool = False,
    model: str = "resnet18",
    weights: str | None = None,
    run: str | Path | None = None,
    backend: str | None = None,
    image_size: int | None = None,
    html: str | Path | None = None,
    decisions: str | Path | None = None,
    quiet: bool = False,
) -> Check:
    """Look at a data set before anything is trained on it: unreadable images, copies, leaks, odd ones, counts.

    Every image is read once. What was found of photos is kept in the cache, so that a check goes on where it was
    stopped, and one of the same photos again takes seconds.

    Args:
        data: whatever `tlx.load_data` takes, or a `tlx.Data`; no part is divided, and nothing is left out.
        data_root: folder that holds the data.
        path_column: column of a .csv or .parquet file with the photos or their paths.
        label_column: column with the labels.
        labels: also look for labels that are likely to be wrong, and for classes that are alike: see
            `tlx.audit.labels`. Features of every image are computed, and kept in the cache.
        model: whose features, as `tlx models` lists them.
        weights: of the model, as in a recipe; default: ImageNet's.
        run: the folder of a finished run, whose model gives the features instead.
        backend: where they are computed; default: torch, or that of the run.
        image_size: pixels a side that the model sees; default: the model's own.
        html: write a page of the pictures to this file.
        decisions: write a row for each image with a problem to this new CSV file, for `tlx.run(fixes=...)`.
        quiet: show nothing on stderr.

    Raises:
        DataNotFound: there is no such data set, file or folder.
        DataError: the data is damaged or has another layout.
        TlxError: a file cannot be written, `decisions` is there already, or there is no such model or run.
    """
    if decisions is not None and Path(decisions).is_file():  # before the work, and not after it
        problem = f"{decisions} is there already, and may hold decisions that a person has made"
        raise TlxError(problem, fix="give another name, or remove it")
    extractor = None
    if labels:
        extractor = open_extractor(model, weights, run, backend, image_size)
    formats_up_to(MAX_PIXELS)  # sets a filter of warnings for good, and not within this block
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")  # of damage that does not keep a photo from being read
        result = _check(data, data_root, path_column, label_column, extractor, Display(quiet))
        if decisions is not None:
            from tlx.audit.decisions import write_decisions

            write_decisions(decisions, result)
        if html is not None:
            from tlx.audit.page import write_page

            write_page(html, result)
    return result


def _check(
    data: Any,
    data_root: str | Path | None,
    path_column: str | None,
    label_column: str | None,
    extractor: Extractor | None,
    display: Display,
) -> Check:
    files = FileHashes()
    name, classes, parts, notes, bad = _opened(data, data_root, path_column, label_column)
    pool = read_pool(parts, classes, bad, files, display)
    exact, skipped = exact_groups(pool), _skipped(pool)
    pairs, places, features = pairs_by_hash(pool, exact), np.flatnonzero(pool.readable), None
    alike: list[Problem] = []
    suspected: list[Row] = []
    try:
        if extractor is not None:
            features = features_of_pool(pool, extractor, places, display)
            pairs |= pairs_by_features(pool, exact, places, features)
        near = near_groups(pool, pairs)
        if features is not None:
            groups = [*(group for some in near.values() for group in some), *exact]
            suspected, alike = judged(pool, places, features, groups, display)
    except DataError as error:  # too few images, or one that is gone since; what was found else is worth having
        skipped.append(f"labels were not judged: {error.problem}")
        near = near_groups(pool, pairs)
    rows = [*_rows_of_broken(pool), *rows_of_exact(pool, exact), *rows_of_near(pool, near, len(exact)), *suspected]
    problems = [*_of_rows(rows, len(pool)), *_of_properties(pool), *_of_counts(pool), *alike]
    counts = _counts(pool)
    return Check(name, classes, counts, _sorted(problems), tuple(notes), tuple(skipped), dict(parts))


def _opened(
    data: Any, root: str | Path | None, path_column: str | None, label_column: str | None
) -> tuple[str, tuple[str, ...], dict[str, Images], list[str], dict[str, dict[int, str]]]:
    """Return the name, the classes, the parts, the notes, and the samples that are known to be of no use."""
    if isinstance(data, Data):
        _check_single(data.name, data.parts)
        return data.name, data.classes, dict(data.parts), list(data.notes), {}
    columns = {"path_column": path_column, "label_column": label_column}
    source = open_source(data, data_root_of(root), columns, KEEP)
    order = sorted(source.parts, key=lambda part: RANK.get(part, 0))  # train first, also where a folder says otherwise
    parts = {part: source.parts[part] for part in order if len(source.parts[part])}
    if not parts:
        raise DataError(f"{source.name} holds no image")
    _check_single(source.name, parts)
    return source.name, source.classes, parts, list(source.notes), {part: dict(b) for part, b in source.bad.items()}


def _check_single(data: str, parts: Mapping[str, Images]) -> None:
    if any(is_multilabel(images.labels) for images in parts.values()):
        problem = f"tlx check compares one label of each image with others, but images of {data} may have several"
        raise DataError(problem, fix="check the photos alone, as a folder")


def data_root_of(root: str | Path | None) -> Path | None:
    """Return a folder as a path."""
    return None if root is None else Path(root).expanduser()


def read_pool(
    parts: dict[str, Images],
    classes: tuple[str, ...],
    bad: dict[str, dict[int, str]],
    files: FileHashes,
    display: Display,
) -> Pool:
    """Read all images."""
    total, before, advance = sum(map(len, parts.values())), 0, display.counted(READING)
    facts: dict[str, Facts] = {}
    for part, images in parts.items():
        facts[part] = facts_of_part(images, files, partial(_advance, advance, before, total))
        facts[part].problems.update(bad.get(part, {}))
        before += len(images)
    return pooled(parts, classes, facts, files)


def _advance(advance: Any, before: int, total: int, done: int, _: int) -> None:
    if done % 32 == 0:
        advance(before + done, total)


def _rows_of_broken(pool: Pool) -> list[Row]:
    rows = []
    for place, problem in sorted(pool.problems.items()):
        kind = "truncated" if "truncated" in problem else "unreadable"
        rows.append(pool.row(kind, place, "drop", detail=problem.removeprefix(f"{pool.name(place)} ")))
    return rows


def _skipped(pool: Pool) -> list[str]:
    """Say what is not looked for, and why."""
    skipped = []
    if not can_hash():
        skipped.append(f"images that look alike were not looked for by their hashes: {EXTRA}")
    small = np.minimum(pool.facts["width"], pool.facts["height"])[pool.readable] < LEAST
    if small.any():
        skipped.append(f"{small.sum():,} images below {LEAST} px were not compared with those that look alike")
    arrays = [part for part, images in pool.parts.items() if not isinstance(images, FileImages)]
    if arrays:
        skipped.append(f"{' and '.join(arrays)}: no files, so nothing is said of links, formats and EXIF")
    return skipped


def _of_rows(rows: Sequence[Row], total: int) -> list[Problem]:
    """Join rows to problems, a line of text each."""
    problems = []
    for kind in KINDS:
        chosen = tuple(row for row in rows if row.problem == kind)
        if chosen:
            groups = len({row.group for row in chosen if row.group is not None})
            within = f" in {groups:,} groups" if groups > 1 else ""
            text = f"{len(chosen):,} of {total:,} images {KINDS[kind][1]}{within}"
            problems.append(Problem(kind, len(chosen), text, chosen))
    return problems


def _of_properties(pool: Pool) -> list[Problem]:
    """What is odd about single images: their size, their shape, their kind."""
    facts, there = pool.facts, pool.readable
    short, long = np.minimum(facts["width"], facts["height"]), np.maximum(facts["width"], facts["height"])
    flags = facts["flags"]
    odd: dict[str, NDArray[np.bool_]] = {
        "plain": flags & PLAIN > 0,
        "tiny": short < TINY,
        "extreme": long > EXTREME * short,
        "grey": (flags & GREY > 0) & (flags & PLAIN == 0),
        "cmyk": flags & CMYK > 0,
        "deep": flags & DEEP > 0,
        "alpha": flags & ALPHA > 0,
        "animated": flags & ANIMATED > 0,
        "rotated": flags & ROTATED > 0,
    }
    problems = []
    for kind, which in odd.items():
        places = np.flatnonzero(which & there)
        if not len(places):
            continue
        text = f"{len(places):,} of {len(pool):,} images {KINDS[kind][1]}"
        if kind == "tiny":
            text += f": less than {TINY} px, the least has {int(short[places].min())}"
        usual = len(places) > USUAL * there.sum()
        rows = () if usual else tuple(pool.row(kind, place, detail=_size(facts[place])) for place in places.tolist())
        problems.append(Problem(kind, len(places), text + (", as most are" if usual else ""), rows))
    return problems


def _size(fact: NDArray[Any]) -> str:
    return f"{fact['width']} x {fact['height']}"


def _counts(pool: Pool) -> dict[str, list[int]]:
    return {part: _count(images.labels, len(pool.classes)) for part, images in pool.parts.items()}


def _count(labels: NDArray[np.int64], classes: int) -> list[int]:
    counts: list[int] = np.bincount(labels[labels >= 0], minlength=classes).tolist()  # -1: a sample of no use
    return counts


def _of_counts(pool: Pool) -> list[Problem]:
    """What is odd about the numbers of images of the classes."""
    problems, counts = [], _counts(pool)
    absent = [
        f"{name} in {part}" for part, of in counts.items() for name, n in zip(pool.classes, of, strict=True) if not n
    ]
    if absent:
        problems.append(Problem("absent_class", len(absent), f"no image of {listed(absent)}"))
    train = counts.get("train", counts.get("all", next(iter(counts.values()))))
    sizes = {name: n for name, n in zip(pool.classes, train, strict=True) if n}
    few = [f"{name} ({n})" for name, n in sizes.items() if n < FEW]
    if few:
        problems.append(Problem("few", len(few), f"{len(few)} classes have fewer than {FEW} images: {listed(few)}"))
    if not sizes:
        return problems
    least, most = min(sizes, key=sizes.__getitem__), max(sizes, key=sizes.__getitem__)
    if sizes[most] >= IMBALANCE * sizes[least]:
        text = f"{most} has {sizes[most]:,} images and {least} {sizes[least]:,}: see sampler and class_weights"
        problems.append(Problem("imbalance", len(sizes), text))
    return problems


def _sorted(problems: Sequence[Problem]) -> tuple[Problem, ...]:
    order = list(KINDS)
    return tuple(sorted(problems, key=lambda problem: order.index(problem.kind)))


__all__ = ["Check", "Decision", "check"]
