"""From whatever names a data set to its parts: it is found, checked, limited, and a validation part is held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from tlx.data.file_hashes import Advance, FileHashes
from tlx.data.fingerprint import fingerprint, first_fingerprint
from tlx.data.fixes import Fixes, note, read_fixes, relabelled, without_drops
from tlx.data.images import MAX_PIXELS, FileImages, Images
from tlx.data.multilabel import JOIN, class_counts, is_multilabel
from tlx.data.repeated import repeated
from tlx.data.sources.registry import check_name, open_source
from tlx.data.sources.sequence import SequenceImages
from tlx.data.sources.source import KEEP, DataLike
from tlx.data.split import draw_per_class, hold_out, limit, pick_classes
from tlx.errors import DataError, as_html, printable

LISTED_CLASSES = 10  # where classes are shown with their counts
LONGEST_NAME = 40  # of a class that is shown there


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Data:
    """A data set: what is trained on, what chooses the best epoch, and what is read once at the end."""

    name: str
    classes: tuple[str, ...]
    train: Images
    val: Images | None
    test: Images | None
    notes: tuple[str, ...]  # facts to show, such as files that were left out
    drawn: frozenset[str] = frozenset()  # parts, val or test, that were held out by a fraction
    hashes: FileHashes = field(default_factory=FileHashes)
    _fingerprint: list[str] = field(default_factory=list)  # once it was taken
    fixes: Fixes | None = None  # decisions on single images

    @property
    def parts(self) -> dict[str, Images]:
        """The parts that there are, under the names train, val and test."""
        parts = {"train": self.train, "val": self.val, "test": self.test}
        return {name: images for name, images in parts.items() if images is not None}

    @property
    def fingerprint(self) -> str:
        """A text that tells these data from others by classes, names, labels and contents; it reads every photo."""
        return self.take_fingerprint()

    def take_fingerprint(self, advance: Advance | None = None) -> str:
        """Return the fingerprint; `advance` is told how many images of how many are known."""
        if not self._fingerprint:
            self._fingerprint.append(fingerprint(self.classes, self.parts, self.hashes, advance))
        return self._fingerprint[0]

    def first_fingerprint(self) -> str:
        """Return the fingerprint that tlx 0.1.0 would have made, which saw names and sizes of photos."""
        return first_fingerprint(self.name, self.classes, self.parts)

    @property
    def multilabel(self) -> bool:
        """Whether several classes may apply to an image."""
        return is_multilabel(self.train.labels)

    @property
    def of_photos(self) -> bool:
        """Whether evaluation sees photos of many sizes, each cropped and resized, or images of one size as they are."""
        return (self.train if self.test is None else self.test).size is None

    def __repr__(self) -> str:
        counts = ", ".join(f"{len(images):,} {name}" for name, images in self.parts.items())
        return printable(f"<Data {self.name}: {len(self.classes)} classes; images: {counts}>")

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{name}</th><td>{len(images):,}</td><td>{as_html(self.class_counts(images))}</td></tr>"
            for name, images in self.parts.items()
        )
        head = "<tr><th>part</th><th>images</th><th>of each class</th></tr>"
        return f"<table><caption>{as_html(self.name)}: {len(self.classes)} classes</caption>{head}{rows}</table>"

    def class_counts(self, images: Images) -> str:
        """List the classes and how many images each has; of many classes the first, and the smallest and largest."""
        counts = class_counts(images.labels, len(self.classes))
        listed = [f"{_short(name)} {count:,}" for name, count in zip(self.classes, counts, strict=True)]
        if len(listed) <= LISTED_CLASSES:
            return ", ".join(listed)
        ends = f"; smallest {listed[int(counts.argmin())]}, largest {listed[int(counts.argmax())]}"
        more = f"and {len(listed) - LISTED_CLASSES:,} more classes{ends if counts.min() < counts.max() else ''}"
        return f"{', '.join(listed[:LISTED_CLASSES])}, {more}"


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def load_data(
    source: DataLike,
    *,
    root: str | Path | None = None,
    classes: Sequence[str] | None = None,
    limit_train: int | None = None,
    limit_test: int | None = None,
    val_fraction: float = 0.1,
    images_per_class: int | None = None,
    test_fraction: float = 0.2,
    on_bad_image: str = "error",
    max_pixels: int = MAX_PIXELS,
    path_column: str | None = None,
    label_column: str | None = None,
    label_separator: str | None = None,
    seed: int = 0,
    fixes: str | Path | None = None,
) -> Data:
    """Load a data set by name ("cifar10", "digits"), by path or address, or from Python objects.

    In Python: ``{"train": part, "test": part, "val": part, "classes": names}`` (all but train optional), ``(train,
    test)``, or one part alone, from which the test part is drawn. A part is (images, labels), arrays or lists; or a
    sequence of (image, label), such as a torchvision data set without random transforms. `docs/data.md` says what
    images and labels may be; the notes say what was converted.

    Args:
        source: one of these; `tlx.data.sources.registry.KINDS` is the table of them.
        root: folder that holds the data. Default: TLX_DATA_ROOT, then the cache.
        classes: names of the classes to use, in the order that numbers their labels.
        limit_train: at most this many training images, in the classes' proportions, always the same ones. The limit
            comes before the split.
        limit_test: at most this many test images, chosen in the same way.
        val_fraction: fraction of the training images held out for validation, drawn by `seed`; unused where the data
            has a validation part.
        images_per_class: at most this many training images of each class, drawn by `seed` once the other parts are held
            out. What is drawn of fewer is among what is drawn of more.
        test_fraction: fraction held out for the test where the data has no parts; the same images whatever the seed.
            With 0 there is no test: a validation part that would have been the test part chooses the best epoch.
        on_bad_image: "error" lists all photos that cannot be decoded when the first is met, and refuses unusable
            samples of Python objects; "skip" tries all before training, leaves the bad ones out and says which; so also
            with missing files that a list names.
        path_column: column of a .csv or .parquet file that holds the photos or their paths; default: guessed, and said
            in a note.
        label_column: column that holds the labels, or the label's name in the .json of a shard. Of a .csv also several,
            with commas between, of which each is a class and holds 0 or 1.
        label_separator: what stands between the labels of an image in that column of a .csv, such as "|" or ";".
        max_pixels: a photo of more pixels is refused before it is decoded, as an image that cannot be.
        seed: of the validation part and of `images_per_class`.
        fixes: a CSV file of decisions on single images, as `tlx check --decisions` writes it: see `tlx.data.fixes`.

    Raises:
        DataNotFound: there is no such data set, file or folder.
        DataError: the data is damaged, has another layout, or cannot be divided as asked; or `fixes` do not fit it.
    """
    columns = {"path_column": path_column, "label_column": label_column, "label_separator": label_separator}
    # What is dropped need not be there.
    origin = open_source(source, root, columns, KEEP if fixes and on_bad_image == "error" else on_bad_image)
    names, parts, notes = origin.classes, dict(origin.parts), list(origin.notes)
    check_name("data: the name", origin.name)
    for name in names:
        check_name(f"{origin.name}: the class name", name)
    if any(is_multilabel(images.labels) for images in parts.values()):
        _check_multilabel(origin.name, names, fixes, images_per_class)
    for part, images in parts.items():
        if isinstance(images, (FileImages, SequenceImages)):
            parts[part] = replace(images, max_pixels=max_pixels)
    hashes = FileHashes()
    decisions = None if fixes is None else read_fixes(str(fixes))
    bad = {part: dict(known) for part, known in origin.bad.items()}
    dropped = 0
    if decisions is not None:
        parts = relabelled(decisions, parts, names, hashes)
        if on_bad_image == "error":  # what is dropped need not be of use
            dropped = _drop_bad(decisions, parts, bad)
    held = "all" if "all" in parts else "train"  # where parts come from that are drawn
    sources = {"train": held, "val": "val" if "val" in parts else held, "test": "test" if "test" in parts else held}
    drawn = {part for part in ("val", "test") if part not in parts and (part == "val" or "all" in parts)}
    if on_bad_image == "skip":
        parts = {part: _usable(images, part, bad.get(part, {}), notes) for part, images in parts.items()}
    elif on_bad_image != "error":
        raise DataError(f"on_bad_image is {on_bad_image!r}; expected error or skip.")
    elif problems := [problem for known in bad.values() for problem in known.values()]:
        more = f" (and {len(problems) - 1} more samples are of no use)" if len(problems) > 1 else ""
        raise DataError(f"{problems[0]}{more}", fix="mend them, or leave them out with on_bad_image='skip'")
    if classes is not None:
        wanted = (classes,) if isinstance(classes, str) else tuple(classes)
        parts = {part: pick_classes(images, names, wanted) for part, images in parts.items()}
        names = wanted
    for part in [part for part, images in parts.items() if not len(images) and part != "train"]:
        notes.append(f"the {part} part has no image of these classes, and is not used")
        del parts[part]
    if len(names) < 2:
        raise DataError(
            f"{origin.name} has {len(names)} class to tell apart ({', '.join(names)}); at least 2 are needed."
        )
    if "all" in parts:
        whole = parts.pop("all")
        parts["train"], test = hold_out(whole, names, test_fraction, "test")
        if test is not None:
            parts["test"] = test
            notes.append(f"{len(test)} of {len(whole)} images were drawn for the test (test_fraction)")
    if origin.stand_in and test_fraction == 0 and "test" in parts:
        parts["val"], sources["val"] = parts.pop("test"), "test"
        notes.append(
            "test_fraction=0: the validation part chooses the best epoch, as in the tutorials; its accuracy is then the"
            " best of all epochs', a choice and no test"
        )
    _check_present(origin.name, parts["train"], names)
    for part, count in (("train", limit_train), ("test", limit_test)):
        if count is not None and part in parts:
            if count > len(parts[part]):
                notes.append(f"limit_{part}={count} is more than there are: all {len(parts[part])} are used")
            parts[part] = limit(parts[part], names, count, f"limit_{part}")
    _check_present(origin.name, parts["train"], names)  # a limit may have left a class out
    train, val, test = parts["train"], parts.get("val"), parts.get("test")
    if val is None:
        train, val = hold_out(train, names, val_fraction, "val", seed)
    if test is None:
        notes.append("there is no test part")
    if images_per_class is not None:
        fewest = int(np.bincount(train.labels, minlength=len(names)).min())
        if fewest < images_per_class:
            notes.append(f"images_per_class={images_per_class}: a class has {fewest}, and all of them are used")
        train = draw_per_class(train, images_per_class, seed)
    used = {part: images for part, images in (("train", train), ("val", val), ("test", test)) if images is not None}
    if decisions is not None:
        before = sum(map(len, used.values()))
        used = {part: without_drops(decisions, sources[part], images) for part, images in used.items()}
        _check_present(origin.name, used["train"], names)
        notes.append(note(decisions, dropped + before - sum(map(len, used.values())), names))
        used = {part: images for part, images in used.items() if len(images)}
    notes += repeated(used, hashes)
    train, val, test = used["train"], used.get("val"), used.get("test")
    return Data(origin.name, names, train, val, test, tuple(notes), frozenset(drawn), hashes, fixes=decisions)


def _drop_bad(fixes: Fixes, parts: dict[str, Images], bad: dict[str, dict[int, str]]) -> int:
    """Take the samples of no use out of the parts where they are dropped; `bad` then holds the others. How many?"""
    before = sum(map(len, parts.values()))
    for part, known in bad.items():
        images, names = parts[part], parts[part].names
        gone = {i for i in known if (part, names[i]) in fixes.drops}
        which = np.array([i for i in range(len(images)) if i not in gone], dtype=np.int64)
        parts[part] = images.select(which, images.labels[which]) if gone else images
        bad[part] = {i: why for i, why in known.items() if i not in gone}
    return before - sum(map(len, parts.values()))


def _check_present(data: str, train: Images, classes: Sequence[str]) -> None:
    present = class_counts(train.labels, len(classes))
    if not present.all():
        raise DataError(f"{data}: no training image of class {classes[int(present.argmin())]!r}.")


def _check_multilabel(data: str, classes: Sequence[str], fixes: object, images_per_class: int | None) -> None:
    """Refuse what has no meaning, or could not be shown, where an image may have several labels."""
    if fixes is not None:
        raise DataError(f"{data}: fixes give an image one label, but here it may have several", fix="leave fixes out")
    if images_per_class is not None:
        problem = f"{data}: images_per_class counts the images of each label, but here an image may have several"
        raise DataError(problem, fix="use limit_train, which keeps the classes in proportion")
    for name in classes:
        if JOIN in name:
            raise DataError(f"{data}: {JOIN!r} stands between several labels, but is part of {name!r}", fix="rename it")


def _usable(images: Images, part: str, known: Mapping[int, str], notes: list[str]) -> Images:
    """Leave out the samples that are known to be of no use or cannot be decoded; a note counts and names them."""
    names = list(images.names)
    bad = {names[i]: problem for i, problem in known.items()}
    photos = isinstance(images, FileImages)
    if known:  # those cannot be tried
        indices = np.array([i for i in range(len(images)) if i not in known], dtype=np.int64)
        images = images.select(indices, images.labels[indices])
    if isinstance(images, (FileImages, SequenceImages)):
        bad |= images.undecodable()
    if not bad:
        return images
    good = np.array([i for i, name in enumerate(images.names) if name not in bad], dtype=np.int64)
    if not len(good):
        what = f"no photo of {part} can be decoded" if photos else f"no sample of {part} can be used"
        raise DataError(f"{what}: {next(iter(bad.values()))}", fix="replace or remove them")
    listed = ", ".join(list(bad)[:5]) + (", ..." if len(bad) > 5 else "")
    what = "photos that cannot be decoded" if photos else f"samples of {part} that cannot be used"
    notes.append(f"left out {len(bad)} of {len(names)} {what}: {listed}")
    if not photos:
        notes.append(f"the first of them: {next(iter(bad.values()))}")
    return images.select(good, images.labels[good])
