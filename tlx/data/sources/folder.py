"""Photos in folders: ``train/<class>/*`` and ``test/<class>/*`` or ``val/<class>/*``; or ``<class>/*`` alone."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tlx.data.images import EXTENSIONS, FileImages, Images
from tlx.data.sources.source import Kind, Source
from tlx.errors import DataError

SHOWN = 5  # names of left-out files in a note
DEPTH = 100  # folders in folders of a data set; what walks through them or removes them calls itself for each

PARTS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
    "unlabelled": ("pred", "predict", "prediction", "unlabelled", "unlabeled"),  # never used
}
FILLERS = {"", "seg", "set", "data", "dataset", "images", "split"}  # as in seg_train or test_set
NAMELESS = {"unknown", "none", "all", "images", "imgs", "photos", *PARTS["unlabelled"]}  # alone in a part: no class
ROLES = {"train": "the training part", "val": "the validation part", "test": "the test part"}
# What archives, viewers and annotators leave beside photos, in lower case. Hidden files are passed over with it.
LITTER = {"__macosx", "thumbs.db", "desktop.ini", "@eadir", "lost+found", "annotation", "annotations"}
# Stands in ImageNet's downloads, and so among the tutorials' ants, for a photo that was gone.
PLACEHOLDER = "imagenotfound.gif"


def part_of(name: str) -> str | None:
    """Which part of `PARTS` the name of a folder says, whatever its case; None: it may be a class."""
    words = [word for word in re.split(r"[\W_]+", name.lower()) if word not in FILLERS]
    return next((part for part, known in PARTS.items() if len(words) == 1 and words[0] in known), None)


def is_litter(name: str) -> bool:
    """Whether a file or folder is hidden, or left behind by other programs."""
    return name.startswith(".") or name.lower() in LITTER


def is_photo(name: str) -> bool:
    """Whether a file's name is that of a photo."""
    suffix = os.path.splitext(name)[1].lower()
    return suffix in EXTENSIONS and not (suffix == ".gif" and os.path.basename(name).lower() == PLACEHOLDER)


@dataclass(frozen=True, slots=True)
class Tree:
    """A folder of photos, and what is passed over in it; all names are paths below `root`."""

    root: Path
    litter: set[str] = field(default_factory=set)
    strangers: set[str] = field(default_factory=set)  # files that are no photos by name

    def inside(self, place: str = "") -> tuple[list[str], list[str]]:
        """Names of the folders and of the photos that lie directly in a folder."""
        with os.scandir(self.root / place) as scan:
            entries = {entry.name: entry.is_dir() for entry in scan}
        self.litter.update(below(place, name) + "/" * entries[name] for name in entries if is_litter(name))
        visible = sorted(name for name in entries if not is_litter(name))
        files = [name for name in visible if not entries[name]]
        self.strangers.update(below(place, name) for name in files if not is_photo(name))
        return [name for name in visible if entries[name]], [name for name in files if is_photo(name)]

    def photos(self, place: str) -> list[str]:
        """Sorted paths of all photos at any depth below a folder."""
        names: list[str] = []
        seen: set[str] = set()

        def fail(error: OSError) -> None:
            raise DataError(f"{error.filename} cannot be read: {error.strerror}.") from error

        top = self.root / place
        for folder, folders, files in os.walk(top, onerror=fail, followlinks=True):
            _check_depth(folder, top)
            real = os.path.realpath(folder)
            if real in seen:
                raise DataError(f"{folder} is a link to {real}, which is read already", fix="remove the link")
            seen.add(real)
            here = below(place, Path(folder).relative_to(top).as_posix()) if folder != str(top) else place
            self.litter.update(f"{here}/{name}/" for name in folders if is_litter(name))
            folders[:] = [name for name in folders if not is_litter(name)]
            for name in files:
                path = f"{here}/{name}"
                if is_litter(name):
                    self.litter.add(path)
                elif is_photo(name):
                    names.append(path)
                else:
                    self.strangers.add(path)
        return sorted(names)

    def classes(self, place: str = "") -> dict[str, list[str]]:
        """The photos of each class folder in a folder, in the order of names; none where it is empty."""
        return {name: self.photos(below(place, name)) for name in self.inside(place)[0]}

    def notes(self, *places: str) -> list[str]:
        """Say what was passed over; `places` are the folders whose folders are classes or parts."""
        loose = [below(place, name) for place in places for name in self.inside(place)[1]]
        notes = []
        if loose:
            notes.append(f"not used: {count(len(loose), 'photo')} outside of class folders: {listed(loose)}")
        if self.strangers:
            one = len(self.strangers) == 1
            plural = "1 file that is not an image" if one else f"{len(self.strangers)} files that are not images"
            notes.append(f"skipped {plural} by name: {listed(self.strangers)}")
        if self.litter:
            what = f"passed over what is hidden, or left behind by other programs ({len(self.litter)})"
            notes.append(f"{what}: {listed(self.litter)}")
        return notes


def from_folder(folder: Path, root: Path | None = None) -> Source:
    """A data set of photos; their classes are the names of the folders that hold them.

    Folders that are called as in `PARTS` are parts, and never classes. Without a test part, the validation part takes
    its place. A folder that holds only folders of photos is one whole, and the test part is drawn from it. A folder
    that only wraps the data is entered. Files and classes are in the order of their names' code points. The notes say
    what is used as what, and what is not used.

    Raises:
        DataError: the folder does not have that layout; the text says what it holds.
    """
    tree, notes = _enter(folder)
    folders, _ = tree.inside()
    by_part = {part: [name for name in folders if part_of(name) == part] for part in PARTS}
    for names in (by_part[part] for part in ROLES):
        if len(names) > 1:
            both = " and ".join(f"{name}/" for name in names)
            raise DataError(f"{tree.root} has both {both}", fix="remove all but one, or join them")
    if any(by_part[part] for part in ROLES):
        return _from_parts(tree, folders, {part: by_part[part][0] for part in ROLES if by_part[part]}, notes)
    if len(folders) == len(by_part["unlabelled"]):
        inside = ", ".join(sorted(p.name + "/" * p.is_dir() for p in tree.root.iterdir())[:8]) or "nothing"
        raise DataError(
            f"{tree.root} has no train/ folder: expected train/<class>/*.jpg and test/ or val/ beside it, or"
            f" <class>/*.jpg alone; found {inside}."
        )
    found = {name: photos for name, photos in tree.classes().items() if part_of(name) is None}
    classes = _with_photos(tree, found, "", notes)
    notes += [f"not used: {_counted(tree, name)}" for name in by_part["unlabelled"]]
    parts: dict[str, Images] = {"all": _images(tree, classes, tuple(classes))}
    return Source(tree.root.resolve().name, tuple(classes), parts, [*notes, *tree.notes("")])


def _enter(folder: Path) -> tuple[Tree, list[str]]:
    """Step into folders that only wrap the data: folders without photos, and the only ones where they are."""
    tree, entered, seen = Tree(folder), "", set()
    while os.path.realpath(tree.root) not in seen:
        _check_depth(tree.root, folder)
        seen.add(os.path.realpath(tree.root))
        folders, photos = tree.inside()
        if len(folders) != 1 or photos or part_of(folders[0]):
            break
        folders_inside, photos_inside = Tree(tree.root / folders[0]).inside()
        if not folders_inside or photos_inside:
            break  # a class
        entered = below(entered, folders[0])
        tree = Tree(folder / entered, tree.litter, tree.strangers)
    return tree, [f"the data are in {entered}/"] if entered else []


def _from_parts(tree: Tree, folders: list[str], parts: dict[str, str], notes: list[str]) -> Source:
    """A data set whose parts lie in folders of their own; `parts` are the folders' names."""
    if "train" not in parts:
        raise DataError(
            f"{tree.root} has {' and '.join(f'{name}/' for name in parts.values())}, but no training part",
            fix="call the folder to train on train/; a class that is called like a part needs another name",
        )
    places = {part: _unwrapped(tree, name) for part, name in parts.items()}
    found = {part: tree.classes(place) for part, place in places.items()}
    if not found["train"]:
        raise DataError(
            f"{tree.root / places['train']} holds no class folders: expected {places['train']}/<class>/*.jpg",
            fix=f"make a folder of each class; if {parts['train']!r} is a class, call it otherwise",
        )
    unused = [name for name in folders if name not in parts.values()]
    without = [part for part in found if part != "train" and _unlabelled(found[part], found["train"])]
    used = {part: part for part in found if part not in without}
    if "val" in used and "test" not in used:
        used["val"] = "test"
    notes.append(_roles(tree, places, used, unused, without))

    train = _with_photos(tree, found["train"], places["train"], notes)
    classes = tuple(train)
    images: dict[str, Images] = {"train": _images(tree, train, classes)}
    for part, role in used.items():
        if part != "train":
            _check_classes(tree.root, places["train"], train, places[part], found[part], notes)
            images[role] = _images(tree, found[part], classes)
    notes += tree.notes("", *(places[part] for part in used))
    return Source(tree.root.resolve().name, classes, images, notes, stand_in=used.get("val") == "test")


def _unlabelled(found: Mapping[str, list[str]], trained: Collection[str]) -> bool:
    """Whether a part has photos in no class folder, or in a single one that is called as what has no class."""
    names = [name for name, photos in found.items() if photos]
    return not names or (len(names) == 1 and names[0].lower() in NAMELESS and names[0] not in trained)


def _unwrapped(tree: Tree, name: str) -> str:
    """The folder of a part, or the one of the same kind that is all it holds, as in seg_train/seg_train."""
    folders, photos = tree.inside(name)
    wraps = len(folders) == 1 and not photos and part_of(folders[0]) == part_of(name)
    return below(name, folders[0]) if wraps else name


def _roles(
    tree: Tree, places: Mapping[str, str], used: Mapping[str, str], unused: list[str], without: list[str]
) -> str:
    """Say which folder is which part, and which are not used."""
    said = [f"{places[part]}/ is {ROLES[role]}" for part, role in used.items()]
    if used.get("val") == "test":
        said[-1] += ", because there is no other"
    rest = [_counted(tree, name) for name in unused]
    rest += [f"{_counted(tree, places[part])}, none in a class folder" for part in without]
    return "; ".join([*said, *([f"not used: {', '.join(rest)}"] if rest else [])])


def _counted(tree: Tree, name: str) -> str:
    photos = 0
    for folder, _, files in os.walk(tree.root / name):
        _check_depth(folder, tree.root)
        photos += sum(map(is_photo, files))
    return f"{name}/ with {count(photos, 'photo')}"


def _check_depth(folder: str | Path, top: Path) -> None:
    if str(folder).count(os.sep) - str(top).count(os.sep) > DEPTH:
        raise DataError(f"{top} holds more than {DEPTH} folders in folders", fix="move the photos up")


def _with_photos(tree: Tree, found: Mapping[str, list[str]], place: str, notes: list[str]) -> dict[str, list[str]]:
    """The classes that have photos; a note says which have none."""
    empty = [f"{below(place, name)}/" for name, photos in found.items() if not photos]
    if len(empty) == len(found):
        raise DataError(f"{tree.root / place} holds no photo in {listed(empty)} ({', '.join(sorted(EXTENSIONS))}).")
    if empty:
        notes.append(f"no class, because there is no photo in it: {listed(empty)}")
    return {name: photos for name, photos in found.items() if photos}


def _check_classes(
    root: Path,
    train: str,
    classes: Mapping[str, list[str]],
    part: str,
    found: Mapping[str, list[str]],
    notes: list[str],
) -> None:
    """Refuse classes that are not trained, and note those that a part lacks."""
    extra = [name for name, photos in found.items() if photos and name not in classes]
    missing = [name for name in classes if not found.get(name)]
    if extra:
        raise DataError(
            f"{root}: {train}/ and {part}/ have different classes. Only in {train}/: {listed(missing)}. Only in"
            f" {part}/: {listed(extra)}",
            fix="give a class the same name, and photos, in all parts, or remove it",
        )
    if missing:
        notes.append(f"{part}/ has no photo of {len(missing)} of {len(classes)} classes: {listed(missing)}")


def _images(tree: Tree, photos: Mapping[str, list[str]], classes: tuple[str, ...]) -> FileImages:
    names = [name for label in classes for name in photos.get(label, ())]
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), [len(photos.get(label, ())) for label in classes])
    return FileImages(tree.root, labels, names)


def below(place: str, name: str) -> str:
    """The path of a name in a folder, which may be the root."""
    return f"{place}/{name}" if place else name


def count(number: int, word: str) -> str:
    """A number and its word."""
    return f"{number:,} {word}" + "s" * (number != 1)


def listed(names: Iterable[str]) -> str:
    """The first few of some names in their order."""
    ordered = sorted(names)
    return ", ".join(ordered[:SHOWN]) + (", ..." if len(ordered) > SHOWN else "") or "none"


FOLDER = Kind(
    name="folder",
    help="a folder of photos",
    read=from_folder,
    recognises=lambda candidate: isinstance(candidate, Path) and candidate.is_dir(),
)
