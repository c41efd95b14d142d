"""A trained model as timm would build it: its name there, where that has the same layout, and what it then computes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from tlx.backend import Array, Arrays
from tlx.backend.export import Plain
from tlx_torch.timm_models import PREFIX, created, layout, library

TAKEN = ("first_conv", "classifier", "pool_size", "min_input_size", "fixed_input_size")  # of timm's own description


def twin(plain: Plain, values: Arrays, inputs: Array) -> tuple[dict[str, Any], Array] | str:
    """Return what timm's config.json says of a model, with the logits of timm's model; or why timm has none.

    Args:
        plain: the model.
        values: its state_dict.
        inputs: normalised images, float32 [N, 3, size, size].
    """
    timm = library()
    if plain.own:
        return "its code is not part of any library"
    if plain.head_layers:
        return "its head is not the one linear layer that timm builds"
    name = plain.model.removeprefix(PREFIX).partition(".")[0]
    if not timm.is_model(name):
        return f"timm has no model {name!r}"
    sized = bool(plain.library) and layout(plain.model).sized
    with torch.device("meta"):
        skeleton = created(name, len(plain.classes), plain.size if sized else 0)
    expected = {key: tuple(tensor.shape) for key, tensor in skeleton.state_dict().items()}
    if expected != {key: array.shape for key, array in values.items()}:
        return f"timm's {name} has another layout"
    module = created(name, len(plain.classes), plain.size if sized else 0).eval()
    module.load_state_dict({key: torch.from_numpy(np.array(array)) for key, array in values.items()})
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logits = module(torch.from_numpy(inputs)).numpy()
    cfg: Any = module.pretrained_cfg
    known = {key: _plain(cfg[key]) for key in TAKEN if cfg.get(key) is not None}
    config = {
        "architecture": name,
        "num_features": int(module.num_features),  # type: ignore[arg-type]
        **({"model_args": {"img_size": plain.size}} if sized else {}),
        "pretrained_cfg": known,
    }
    return config, logits


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
