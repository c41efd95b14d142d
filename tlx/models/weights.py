"""Weights on disk: read them from any source, match them to a model, write them so that a kill loses nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from tlx.atomic import write_atomic
from tlx.backend import Array, Arrays, ParamSpec
from tlx.errors import WeightsError, WeightsNotFound

RUN_WEIGHTS = "model.safetensors"
_LISTED = 4  # names an error spells out before it counts
_COUNTER = ".num_batches_tracked"  # BatchNorm's, which checkpoints from before 2018 lack


def read_weights(path: str | Path) -> dict[str, Array]:
    """Return the arrays of a `.safetensors`, `.pth` or `.pt` file, or of a run's folder, by name.

    bfloat16, which NumPy lacks, comes as the float32 numbers it equals. A prefix ``module.`` that every name has, as
    data-parallel training leaves it, is entries off.

    Raises:
        WeightsError: the file is missing, damaged, hostile, empty, or of another kind.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / RUN_WEIGHTS).is_file():
            raise WeightsError(f"{path}: a folder without {RUN_WEIGHTS}; expected the folder of a finished run")
        path = path / RUN_WEIGHTS
    if path.suffix == ".safetensors":
        arrays = _read_safetensors(path)
    elif path.suffix in (".pth", ".pt"):
        from tlx.models.pth import read_pth

        arrays = read_pth(path)
    else:
        raise WeightsError(f"{path}: unknown kind of weights; expected .safetensors, .pth, .pt or a run's folder")
    if not arrays:
        raise WeightsError(f"{path}: holds no weights")
    if all(name.startswith("module.") for name in arrays):
        arrays = {name.removeprefix("module."): array for name, array in arrays.items()}
    return arrays


_DTYPES = {
    **{"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "BOOL": "|b1"},
    **{"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1"},
}


def _read_safetensors(path: Path) -> dict[str, Array]:
    from safetensors import SafetensorError, deserialize

    from tlx.models.pth import widen_bfloat16

    try:
        arrays: dict[str, Array] = {}
        for name, entry in deserialize(path.read_bytes()):  # type: ignore[no-untyped-call]
            if (dtype := _DTYPES.get(entry["dtype"])) is None:
                raise WeightsError(f"{path}: {name!r} is of dtype {entry['dtype']}; expected one of {list(_DTYPES)}")
            flat: Array = np.frombuffer(entry["data"], dtype)
            arrays[name] = (widen_bfloat16(flat) if entry["dtype"] == "BF16" else flat).reshape(entry["shape"])
        return arrays
    except FileNotFoundError as error:
        raise WeightsNotFound(f"{path}: no such file") from error
    except WeightsError:
        raise
    except (SafetensorError, OSError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise WeightsError(f"{path}: damaged or not a .safetensors file ({reason})") from error


def match(
    arrays: Arrays, specs: Iterable[ParamSpec], *, head: str, model_name: str, take_head: bool
) -> dict[str, Array]:
    """Return what a model takes from a checkpoint, in the order of `specs` and in their dtypes.

    Everything outside the module `head` must be there, once and in its shape, and nothing else may be. The head's own
    entries are dropped, or with `take_head` required like all others. BatchNorm's batch counter starts at 0 if an older
    checkpoint has none. Floats are cast to the dtype of their spec.

    Raises:
        WeightsError: entries are missing, left over, misshapen or of another kind of dtype; it lists them.
    """
    inner = head + "."
    wanted = {spec.name: spec for spec in specs if take_head or not spec.name.startswith(inner)}
    offered = {name: array for name, array in arrays.items() if take_head or not name.startswith(inner)}
    missing = [name for name in wanted if name not in offered and not name.endswith(_COUNTER)]
    extra = [name for name in offered if name not in wanted]
    unfit = [
        f"{name} {list(offered[name].shape)} {offered[name].dtype} (model: {list(spec.shape)} {spec.dtype})"
        for name, spec in wanted.items()
        if name in offered
        and not (offered[name].shape == spec.shape and np.can_cast(offered[name].dtype, spec.dtype, "same_kind"))
    ]
    faults = {"missing": missing, "not in the model": extra, "of another shape or dtype": unfit}
    if any(faults.values()):
        listed = "; ".join(f"{len(names)} {fault}: {_some(names)}" for fault, names in faults.items() if names)
        raise WeightsError(f"Weights do not fit {model_name}: {listed}. Are they of another architecture?")
    return {
        name: offered[name].astype(spec.dtype, copy=False) if name in offered else np.zeros(spec.shape, spec.dtype)
        for name, spec in wanted.items()
    }


def _some(names: list[str]) -> str:
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")


def write_safetensors(path: str | Path, arrays: Arrays, metadata: Mapping[str, str] | None = None) -> None:
    """Write arrays of any layout to a `.safetensors` file, atomically; 0-d arrays stay 0-d."""
    from safetensors.numpy import save

    # safetensors writes the memory of an array as it lies, so other layouts would come back scrambled.
    ordered = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    write_atomic(path, save(ordered, dict(metadata) if metadata else None))


def first_not_finite(arrays: Arrays) -> str | None:
    """Return the name of the first array that holds a NaN or an infinity, or None."""
    return next((name for name, array in arrays.items() if not np.isfinite(array).all()), None)


def digests(arrays: Arrays) -> dict[str, str]:
    """Return for each name the SHA-256, in hex, over its dtype, shape and bytes."""
    return {name: _sha256(array) for name, array in arrays.items()}


def digest(arrays: Arrays) -> str:
    """Return one SHA-256, in hex, over names, dtypes, shapes and bytes; the order of the names does not matter."""
    return hashlib.sha256(json.dumps(digests(arrays), sort_keys=True).encode()).hexdigest()


def _sha256(array: Array) -> str:
    result = hashlib.sha256(f"{array.dtype.str}{list(array.shape)}".encode())
    result.update(np.asarray(array, order="C").tobytes())
    return result.hexdigest()
