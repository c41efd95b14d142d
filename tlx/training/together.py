"""What the processes of a run do beside the steps: see that they agree, and take over what the first did alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tlx.backend import Array, Arrays, Backend, Model
from tlx.errors import TlxError
from tlx.models.weights import digests, joint_digest, parse_safetensors, safetensors_bytes
from tlx.processes import Channel, of_first

FACTS = "facts"  # the name under which facts travel beside arrays


def check_alike(arrays: Arrays, channel: Channel, when: str) -> None:
    """Raise TlxError, which names the first array that differs, unless all processes hold the same bits."""
    if channel.world.size == 1:
        return
    own = digests(arrays)
    if len({*channel.gather(joint_digest(own).encode())}) == 1:
        return
    others = [json.loads(part) for part in channel.gather(json.dumps(own).encode())]
    for rank, other in enumerate(others):
        for name, value in others[0].items():
            if other.get(name) != value:
                problem = f"the processes of the run have drifted apart {when}: {name!r} differs between 0 and {rank}"
                raise TlxError(problem, fix="use equal machines; see docs/distributed.md")
    raise AssertionError("digests differ, and no array does")


def arrays_of_first(channel: Channel, arrays: Arrays, facts: Mapping[str, Any]) -> tuple[dict[str, Array], Any]:
    """Return the arrays and the facts of the first process; those of the others are not looked at."""
    content = b""
    if channel.world.rank == 0:
        text = np.frombuffer(json.dumps(facts).encode(), np.uint8)
        content = safetensors_bytes({**arrays, FACTS: text})
    received = parse_safetensors(of_first(channel, content), Path("what the first process sent"))
    return received, json.loads(received.pop(FACTS).tobytes())


def take_over(backend: Backend, model: Model, optimizer: Any, shadow: Model | None, channel: Channel) -> None:
    """Give the model, its optimizer and its average the values that they have in the first process."""
    arrays: dict[str, Array] = {}
    if channel.world.rank == 0:
        arrays |= {f"model/{name}": array for name, array in backend.dump_arrays(model).items()}
        arrays |= {f"optimizer/{name}": array for name, array in backend.dump_optimizer(optimizer).items()}
        if shadow is not None:
            arrays |= {f"average/{name}": array for name, array in backend.dump_arrays(shadow).items()}
    received, _ = arrays_of_first(channel, arrays, {})
    if channel.world.rank == 0:
        return
    kinds: dict[str, dict[str, Array]] = {"model": {}, "optimizer": {}, "average": {}}
    for key, array in received.items():
        kind, _, name = key.partition("/")
        kinds[kind][name] = array
    backend.load_arrays(model, kinds["model"])
    backend.load_optimizer(optimizer, kinds["optimizer"])
    if shadow is not None:
        backend.load_arrays(shadow, kinds["average"])


def pack(values: Sequence[Array]) -> bytes:
    """Return arrays as bytes."""
    return safetensors_bytes({f"{number:08d}": value for number, value in enumerate(values)})


def unpack(content: bytes) -> list[Array]:
    """Return the arrays of `pack`."""
    arrays = parse_safetensors(content, Path("what a process sent"))
    return [arrays[name] for name in sorted(arrays)]
