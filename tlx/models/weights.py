"""Weights on disk: read them from any source, write them so that a kill loses nothing, and tell them apart."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from tlx.atomic import write_atomic
from tlx.backend import Array, Arrays, ParamSpec
from tlx.errors import WeightsError, WeightsNotFound
from tlx.files import read_regular
from tlx.manifest import Manifest, owner_of, read_files, read_manifest
from tlx.models.formats import MAX_INDEX, MAX_NAME, Checkpoint, FileKind, kind_of, shards, spelled

RUN_WEIGHTS = "model.safetensors"
# What a folder may hold, the first first; the others are Hugging Face's.
FOLDER_WEIGHTS = (RUN_WEIGHTS, f"{RUN_WEIGHTS}.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def read_weights(path: str | Path) -> dict[str, Array]:
    """Return the arrays of a weights file or of a folder that holds one, by name: see `read_checkpoint`."""
    return read_checkpoint(path).arrays


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Return the arrays of what torch.save or safetensors wrote, of an index of such files, or of a run's folder.

    Its content decides how a file is read, whatever its suffix. bfloat16, which NumPy lacks, comes as the float32
    numbers that it equals.

    Raises:
        WeightsError: the file is missing, damaged, hostile, empty, or of another kind.
        RunDamaged: a file of a run is not what the run wrote.
    """
    path = Path(path)
    if os.path.isdir(path):  # unlike `Path.is_dir`, it takes any name
        if (manifest := read_manifest(path)) is not None:
            return _of_run(path, RUN_WEIGHTS, manifest)
        path = _in_folder(path)
    elif os.path.isfile(path) and (owner := owner_of(path)) is not None:
        return _of_run(*owner)
    kind = _kind(path)
    if kind != "index":
        checkpoint = _read(path, kind)
    else:
        parts = [_read(shard, _kind(shard)) for shard in shards(path, _read_index(path))]
        checkpoint = Checkpoint(
            {name: array for part in parts for name, array in part.arrays.items()},
            tuple(note for part in parts for note in part.notes),
        )
    if not checkpoint.arrays:
        raise WeightsError(f"{path}: holds no weights")
    if longest := next((name for name in checkpoint.arrays if len(name) > MAX_NAME), ""):
        problem = f"{path}: the name {spelled(longest)!r} has {len(longest):,} characters"
        raise WeightsError(f"{problem}; at most {MAX_NAME:,} are read")
    return checkpoint


def _read_index(path: Path) -> bytes:
    with path.open("rb") as file:
        text = file.read(MAX_INDEX + 1)
    if len(text) > MAX_INDEX:
        raise WeightsError(f"{path}: JSON of more than {MAX_INDEX >> 20} MiB, which is no index of weights")
    return text


def _kind(path: Path) -> FileKind:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would keep the run waiting, and a device may never end
            raise WeightsError(f"{path}: a pipe or a device, and no file", fix="save the weights in a file")
        with path.open("rb") as file:
            return kind_of(path, file.read(512), status.st_size)
    except FileNotFoundError as error:
        raise WeightsNotFound(f"{path}: no such file") from error
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsNotFound(f"{path}: no such file ({error})") from error


def _of_run(folder: Path, name: str, manifest: Manifest | None = None) -> Checkpoint:
    """Return the weights of a run, which must be those that it wrote."""
    if manifest is not None and name not in manifest.files:
        raise WeightsError(f"{folder}: the run has not finished", fix=f"finish it with: tlx run --resume {folder}")
    return Checkpoint(parse_safetensors(read_files(folder, (name,))[name], folder / name))


def check_digest(arrays: Arrays, card: object, path: Path) -> None:
    """Raise WeightsError where a run's weights are not those that its card names; a card that names none is no proof.

    This is for runs of tlx 0.1.0, which have no manifest.
    """
    if isinstance(card, dict) and card.get("sha256") not in (None, digest(arrays)):
        raise WeightsError(f"{path} is damaged: its values are not those that were saved", fix="train again")


def _read(path: Path, kind: FileKind) -> Checkpoint:
    if kind == "safetensors":
        return Checkpoint(parse_safetensors(_content(path), path))
    if kind == "torch":
        from tlx.models.pth import read_pth

        return read_pth(path)
    raise WeightsError(f"{path}: an index of weights where weights are expected")


def _content(path: Path) -> bytes:
    try:
        return read_regular(path)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror or error}") from error


def _in_folder(folder: Path) -> Path:
    for name in FOLDER_WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise WeightsError(
        f"{folder}: a folder without {RUN_WEIGHTS}; expected a finished run, or one of {', '.join(FOLDER_WEIGHTS)}"
    )


_DTYPES = {
    **{"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "BOOL": "|b1"},
    **{"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1"},
}


def parse_safetensors(content: bytes, path: Path) -> dict[str, Array]:
    """Return the arrays that a `.safetensors` file's content holds; `path` is named where that is damaged.

    Raises WeightsError.
    """
    from safetensors import SafetensorError, deserialize

    from tlx.models.pth import widen_bfloat16

    try:
        arrays: dict[str, Array] = {}
        for name, entry in deserialize(content):  # type: ignore[no-untyped-call]
            if (dtype := _DTYPES.get(entry["dtype"])) is None:
                raise WeightsError(
                    f"{path}: {spelled(name)!r} is of dtype {entry['dtype']}; expected one of {list(_DTYPES)}"
                )
            flat: Array = np.frombuffer(entry["data"], dtype)
            arrays[name] = (widen_bfloat16(flat) if entry["dtype"] == "BF16" else flat).reshape(entry["shape"])
        return arrays
    except WeightsError:
        raise
    except (SafetensorError, ValueError, OverflowError, MemoryError) as error:
        reason = spelled(" ".join(str(error).split())) or type(error).__name__
        raise WeightsError(f"{path}: damaged or not a .safetensors file ({reason})") from error


def write_safetensors(path: str | Path, arrays: Arrays, metadata: Mapping[str, str] | None = None) -> None:
    """Write arrays of any layout to a `.safetensors` file, atomically; 0-d arrays stay 0-d."""
    write_atomic(path, safetensors_bytes(arrays, metadata))


def safetensors_bytes(arrays: Arrays, metadata: Mapping[str, str] | None = None) -> bytes:
    """Return arrays of any layout as the content of a `.safetensors` file; 0-d arrays stay 0-d."""
    from safetensors.numpy import save

    # safetensors writes the memory of an array as it lies, so other layouts would come back scrambled.
    ordered = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    return save(ordered, dict(metadata) if metadata else None)


def first_not_finite(arrays: Arrays, specs: Iterable[ParamSpec]) -> str | None:
    """Return the name of the first array that holds a NaN or an infinity, or None.

    A buffer of `specs` that is no running statistic may hold infinities, as masks of attention do.
    """
    bounds = {s.name for s in specs if s.role == "statistic" and not s.name.rpartition(".")[2].startswith("running_")}
    for name, array in arrays.items():
        if np.isnan(array).any() if name in bounds else not np.isfinite(array).all():
            return name
    return None


def digests(arrays: Arrays) -> dict[str, str]:
    """Return for each name the SHA-256, in hex, over its dtype, shape and bytes."""
    return {name: _sha256(array) for name, array in arrays.items()}


def digest(arrays: Arrays) -> str:
    """Return one SHA-256, in hex, over names, dtypes, shapes and bytes; the order of the names does not matter."""
    return joint_digest(digests(arrays))


def joint_digest(parts: Mapping[str, str]) -> str:
    """Return the `digest` of arrays whose `digests` these are."""
    return hashlib.sha256(json.dumps(dict(parts), sort_keys=True).encode()).hexdigest()


def _sha256(array: Array) -> str:
    result = hashlib.sha256(f"{array.dtype.str}{list(array.shape)}".encode())
    result.update(np.asarray(array, order="C").tobytes())
    return result.hexdigest()
