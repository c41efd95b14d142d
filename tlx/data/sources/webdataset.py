"""WebDataset: tar shards in which the files of a sample follow each other, read at random through an index."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tlx.atomic import write_json
from tlx.data.images import EXTENSIONS, Images
from tlx.data.sources.folder import count, listed
from tlx.data.sources.kept import facts_of
from tlx.data.sources.packed import PackedImages
from tlx.data.sources.parts import files_in, files_of_parts, with_test
from tlx.data.sources.source import Kind, Source
from tlx.data.sources.strict_tar import StrictMember
from tlx.download import cache_folder
from tlx.errors import DataError, DataNotFound, TlxError, closest
from tlx.files import open_regular, read_regular

LABELS = ("label", "cls", "class", "class_id", "class_name", "label_name", "category", "target")  # in a .json
NAMES = ("classes.txt", "classnames.txt", "classes.json", "class_to_idx.json")
SMALL = 2**20  # bytes of a member that is no photo; a label has a few
PEEKED = 16  # members that tell a shard from another tar
SHARDS = 250_000  # of a pattern; LAION-5B has 232,000. One digit too many would count for ever
FORMAT = 2  # of an index in the cache

# A sample of a shard: its key, its photo's offset and size, and the texts of its labels by their extension.
Sample = tuple[str, int, int, dict[str, str]]


def from_shards(source: Path, root: Path | None = None, label_column: str | None = None) -> Source:
    """A data set of tar shards, each sample of which is ``<key>.jpg`` beside ``<key>.cls`` or ``<key>.json``.

    A label is a class's number or name; of a .json, what stands there as label, cls, class and so on, or as
    `label_column`. Names for numbers are taken from ``classes.txt`` or ``classes.json`` beside the shards. Shards whose
    names begin with train, val or test are these parts. The samples are in the order of the shards' names and then of
    the shards, and each is read when needed.

    Raises:
        DataError: a shard is damaged, or its samples have no labels; the text names it.
        DataNotFound: the pattern names a shard that is not there.
    """
    files = _shards(source)
    names = {file: file.stem for file in files}
    if len(set(names.values())) < len(names):  # a pattern may have braces in a folder's name
        names = {file: str(file.with_suffix("")) for file in files}
    notes: list[str] = []
    parts = {part: list(_samples(shards, names, notes)) for part, shards in files_of_parts(files).items()}
    texts = {part: [_label(shard, sample, label_column) for shard, sample in chosen] for part, chosen in parts.items()}
    classes, number = _classes(files[0].parent, set(itertools.chain.from_iterable(texts.values())))
    images: dict[str, Images] = {}
    for part, chosen in parts.items():
        shards = tuple(dict.fromkeys(shard for shard, _ in chosen))
        place = {shard: i for i, shard in enumerate(shards)}
        images[part] = PackedImages(
            files[0].parent,
            np.array([number[text] for text in texts[part]], dtype=np.int64),
            [f"{names[shard]}/{sample[0]}" for shard, sample in chosen],
            files=shards,
            places=np.array([(place[shard], *sample[1:3]) for shard, sample in chosen], dtype=np.int64).reshape(-1, 3),
        )
    return Source(_name(source), tuple(classes), with_test(images), notes, stand_in={*images} == {"train", "val"})


def is_shard(file: Path) -> bool:
    """Whether a tar holds samples: near its beginning a photo, and beside it a label or a .json of the same key."""
    try:
        with open_regular(file) as stream, tarfile.open(fileobj=stream, mode="r:", tarinfo=StrictMember) as tar:
            members = [_key(member.name) for member in itertools.islice(tar, PEEKED) if member.isfile()]
    except Exception:  # tarfile raises a dozen kinds on damaged ones, such as OverflowError
        return False
    photos = {key for key, extension in members if f".{extension}" in EXTENSIONS}
    return any(key in photos for key, extension in members if extension in ("cls", "json"))


def _is_shards(candidate: object) -> bool:
    if not isinstance(candidate, Path):
        return False
    if candidate.suffix.lower() == ".tar":
        if candidate.is_file():
            return is_shard(candidate)
        return _is_pattern(candidate) and any(os.path.isfile(file) for file in _expanded(str(candidate)))
    return candidate.is_dir() and any(is_shard(file) for file in files_in(candidate, ".tar")[:1])


def _is_pattern(path: Path) -> bool:
    return not path.exists() and bool(re.search(r"\{[^{}]*(\.\.|,)[^{}]*\}", str(path)))


def _name(source: Path) -> str:
    if source.is_dir():
        return source.resolve().name
    return re.sub(r"[-_.\d]*\{[^{}]*\}", "", source.stem) or source.resolve().parent.name


def _shards(source: Path) -> list[Path]:
    """Return the shards of a folder, of a pattern such as ``train-{000000..000003}.tar``, or the one file."""
    if source.is_dir():
        return files_in(source, ".tar")
    if not _is_pattern(source):
        return [source]
    files = [Path(text) for text in _expanded(str(source))]
    missing = [file for file in files if not file.is_file()]
    if missing:
        listed = ", ".join(str(file) for file in missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise DataNotFound(f"{source}: {len(missing)} of {len(files)} shards are not there: {listed}.")
    return files


def _expanded(pattern: str) -> Iterator[str]:
    """Expand braces as a shell does: ``{000..003}`` counts, keeping the zeros, and ``{a,b}`` lists."""
    for number, text in enumerate(_choices(pattern)):
        if number == SHARDS:
            raise DataError(f"data={pattern!r} is more than {SHARDS} shards", fix="write it as {000000..000009}")
        yield text


def _choices(pattern: str) -> Iterator[str]:
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        yield pattern
        return
    choices: Iterable[str] = match[1].split(",")
    if bounds := re.fullmatch(r"(\d{1,9})\.\.(\d{1,9})", match[1]):
        first, last = int(bounds[1]), int(bounds[2])
        if not first <= last < first + SHARDS:
            what = "counts down" if last < first else f"is more than {SHARDS} shards"
            raise DataError(f"data={pattern!r}: {match[0]} {what}", fix="write it as {000000..000009}")
        choices = (f"{i:0{len(bounds[1])}}" for i in range(first, last + 1))
    for choice in choices:
        yield from _choices(pattern[: match.start()] + choice + pattern[match.end() :])


def _samples(shards: list[Path], names: dict[Path, str], notes: list[str]) -> Iterator[tuple[Path, Sample]]:
    """Yield the samples of shards with the shard of each, and note what was left out."""
    unlabelled: list[str] = []
    photoless: list[str] = []
    for shard in shards:
        index = _index(shard)
        photoless += [f"{names[shard]}/{key}" for key in index["photoless"]]
        for sample in index["samples"]:
            if sample[3]:
                yield shard, tuple(sample)
            else:
                unlabelled.append(f"{names[shard]}/{sample[0]}")
    if unlabelled:
        notes.append(f"left out {count(len(unlabelled), 'sample')} without a label: {listed(unlabelled)}")
    if photoless:
        notes.append(f"left out {count(len(photoless), 'sample')} without a photo: {listed(photoless)}")


def _index(shard: Path) -> dict[str, Any]:
    """Return the index of a shard, from the cache where the shard has not changed since."""
    version = [FORMAT, *facts_of(shard)]
    key = hashlib.sha256(os.fsencode(shard.resolve())).hexdigest()[:32]
    try:
        kept = cache_folder() / "shards" / f"{key}.json"
        index: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        if index["version"] == version and index.pop("digest") == _digest(index):
            return index
    except (OSError, ValueError, KeyError, TypeError):
        pass  # there is none, or none that can be read, so it is built
    try:
        index = {"version": version, **_scan(shard)}
    except OSError:
        raise
    except Exception as error:  # tarfile raises a dozen kinds on damaged ones, such as OverflowError
        raise DataError(f"{shard} cannot be read as a tar shard: {error}", fix="download or write it again") from error
    try:
        kept = cache_folder() / "shards" / f"{key}.json"
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_json(kept, {**index, "digest": _digest(index)})
    except (OSError, TlxError, UnicodeEncodeError):
        pass  # the next run scans the shard again
    return index


def _digest(index: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()


def _scan(shard: Path) -> dict[str, Any]:
    """Read the headers of a shard, and the members that hold labels."""
    samples: dict[str, dict[str, Any]] = {}
    with open_regular(shard) as file, tarfile.open(fileobj=file, mode="r:", tarinfo=StrictMember) as tar:
        length = os.fstat(file.fileno()).st_size
        for member in tar:
            tar.members = []  # type: ignore[attr-defined]  # they would fill the memory
            if not member.isfile():
                continue
            if member.issparse() or member.offset_data + member.size > length:
                raise tarfile.ReadError(f"it is {'sparse' if member.issparse() else 'cut off'} within {member.name}")
            key, extension = _key(member.name)
            sample = samples.setdefault(key, {})
            kind = "photo" if f".{extension}" in EXTENSIONS else extension
            if kind not in ("photo", "cls", "json"):
                continue
            if kind in sample:
                raise tarfile.ReadError(f"the sample {key} has two members .{extension}")
            if kind == "photo":
                sample[kind] = (member.offset_data, member.size)
            elif member.size > SMALL:
                raise tarfile.ReadError(f"{member.name} has {member.size} bytes, too many for a label")
            else:
                content = tar.extractfile(member)
                assert content is not None
                if text := content.read().decode("utf-8").strip():
                    sample[kind] = text
    photos = {key: sample.pop("photo") for key, sample in samples.items() if "photo" in sample}
    return {
        "samples": [(key, *photo, samples[key]) for key, photo in photos.items()],
        "photoless": [key for key in samples if key not in photos],
    }


def _key(name: str) -> tuple[str, str]:
    """Divide a member's name into the key and the extension: what follows the last component's first dot."""
    folder, slash, file = name.removeprefix("./").rpartition("/")
    stem, _, extension = file.partition(".")
    return f"{folder}{slash}{stem}", extension.lower()


def _label(shard: Path, sample: Sample, label_column: str | None) -> str:
    key, _, _, texts = sample
    if "cls" in texts and (label_column is None or "json" not in texts):
        return texts["cls"]
    where = f"{shard}: {key}.json"
    try:
        facts = json.loads(texts["json"])
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is no JSON: {error}.") from error
    if isinstance(facts, dict):
        name = label_column or next((name for name in LABELS if name in facts), "")
        if name not in facts:
            raise DataError(
                f"{where} has no {name or 'label'!r}; it has {', '.join(facts)}.{closest(name, facts) if name else ''}",
                fix="say what is the label with label_column",
            )
        facts = facts[name]
    if isinstance(facts, bool) or not isinstance(facts, (str, int)) or not str(facts).strip():
        raise DataError(f"{where}: the label is {facts!r}; expected a number or a name.")
    return str(facts).strip()


def _classes(folder: Path, labels: set[str]) -> tuple[list[str], dict[str, int]]:
    """Return the class names, and the number of each label. Numbers keep their order, names that of code points."""
    if not labels:
        raise DataError(f"{folder}: no sample of the shards has a label (.cls or .json).")
    if not all(re.fullmatch(r"\d{1,9}", label) for label in labels):
        classes = sorted(labels)
        return classes, {label: i for i, label in enumerate(classes)}
    names = _named_classes(folder)
    numbers = {label: int(label) for label in labels}
    if not names:
        order = sorted(set(numbers.values()))
        return [str(i) for i in order], {label: order.index(i) for label, i in numbers.items()}
    top = max(numbers.values())
    if top >= len(names):
        raise DataError(f"{folder}: there is a label {top}, but only {len(names)} class names.")
    return names, numbers


def _named_classes(folder: Path) -> list[str]:
    """Return the names that a file beside the shards gives to numbers; none where there is no such file."""
    file = next((folder / name for name in NAMES if (folder / name).is_file()), None)
    if file is None:
        return []
    try:
        text = read_regular(file, SMALL).decode("utf-8-sig")
        if file.suffix == ".txt":
            names = [line.strip() for line in text.splitlines() if line.strip()]
        else:
            value = json.loads(text)
            if isinstance(value, dict) and all(isinstance(i, int) for i in value.values()):
                value = {str(i): name for name, i in value.items()}  # from names to numbers
            names = [value[str(i)] for i in range(len(value))] if isinstance(value, dict) else list(value)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{file} cannot be read as class names: {error}.") from error
    if not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
        raise DataError(f"{file}: the class names are not texts that are all different.")
    return names


WEBDATASET = Kind(
    name="webdataset",
    help="WebDataset shards (a .tar, a folder or a {000..009} pattern of them)",
    read=from_shards,
    recognises=_is_shards,
    options=("label_column",),
)
