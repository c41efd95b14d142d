"""A model taken elsewhere: files that torch.load and torchvision, or timm, read, and the code that does so.

Importing this module imports no framework; asking for code does not either, but for a model of timm.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from tlx.backend import Array, Arrays, Model, Preprocess
from tlx.backend.export import Plain, at_path, head_lines, quoted
from tlx.errors import TlxError
from tlx.models.published import PARAMETERS

if TYPE_CHECKING:
    from torch import Tensor

TIMM = "timm:"


class TorchExporter:
    """PyTorch, with torchvision's models and timm's."""

    alias = "torch"

    def imports(self, plain: Plain) -> list[str]:
        """Import PyTorch and what builds the model."""
        zoo = "" if plain.own_module else "timm" if plain.library else "torchvision"
        return ["import torch", *([f"import {zoo}"] if zoo else [])]

    def check(self, plain: Plain) -> None:
        """Refuse what neither torchvision nor timm builds."""
        if not (plain.own_module or plain.library or plain.model in PARAMETERS):
            raise TlxError(f"torchvision has no model {plain.model!r}", fix="use tlx.load_model")

    def construct(self, plain: Plain) -> list[str]:
        """Make the model with the framework's own function, and then its head where that is another."""
        lines = [f"model = {self._made(plain)}"]
        return [*lines, *head_lines(plain, plain.head, "torch.nn"), *self._twin(plain)]

    def load(self, plain: Plain, path: str) -> tuple[list[str], list[str], str]:
        """Read what torch.save or safetensors wrote."""
        if not path.endswith(".safetensors"):
            return [], [], f'torch.load({quoted(path)}, map_location="cpu", weights_only=True)'
        imports, values = ["from safetensors.torch import load_file"], f"load_file({quoted(path)})"
        if not (versions := _versions(plain)):
            return imports, [], values
        lines = [f"values = OrderedDict({values})", f"values._metadata = {versions}  # which torchvision asks for"]
        return [*imports, "from collections import OrderedDict"], lines, "values"

    def call(self, plain: Plain, inputs: str) -> str:
        """Call the model."""
        return f"model({inputs}){plain.logits}"

    def state(self, model: Model) -> dict[str, Array]:
        """Return the module's own state_dict, with every name of what is shared, and without what is not saved."""
        return {name: _array(tensor) for name, tensor in model.module.state_dict().items()}

    def logits(self, model: Model) -> str:
        """Return what follows a call of a module of somebody's own."""
        from tlx.backend.module.own import expression_of_logits

        return expression_of_logits(model)

    def renamed(self, plain: Plain, arrays: Arrays) -> dict[str, Array]:
        """Return the values as they are: tlx's names are torchvision's."""
        return dict(arrays)

    def write(self, plain: Plain, target: BinaryIO | Path, arrays: Arrays) -> None:
        """Write what torch.load reads with weights_only=True."""
        import torch

        values = OrderedDict((name, torch.from_numpy(np.array(array))) for name, array in arrays.items())
        if versions := _versions(plain):
            vars(values)["_metadata"] = versions
        torch.save(values, target)

    def onnx(self, model: Model, preprocess: Preprocess, metadata: Sequence[tuple[str, str]]) -> bytes:
        """Return the model as ONNX: see `tlx.backend.export.OnnxExporter`."""
        from tlx_torch.onnx_file import exported

        return exported(model, preprocess, metadata)

    def run_onnx(self, content: bytes, batches: Sequence[Array]) -> list[Array]:
        """Run an ONNX model on the CPU."""
        from tlx_torch.onnx_file import logits

        return logits(content, batches)

    def timm_twin(self, plain: Plain, arrays: Arrays, inputs: Array) -> tuple[dict[str, Any], Array] | str:
        """Describe the model as timm's: see `tlx.backend.export.HubExporter`."""
        from tlx_torch.timm_layout import twin

        return twin(plain, arrays, inputs)

    def _made(self, plain: Plain) -> str:
        if plain.own_module:
            return f"{plain.model}()  # your own module, as it was passed to tlx.run"
        classes = len(plain.classes)
        if plain.library:
            from tlx_torch.timm_models import layout

            size = f", img_size={plain.size}" if layout(plain.model).sized else ""
            return f"timm.create_model({quoted(plain.model.removeprefix(TIMM))}, num_classes={classes}{size})"
        options = "".join(f", {name}={value}" for name, value in plain.options)
        return f"torchvision.models.{plain.model}(num_classes={classes}{options})"

    def _twin(self, plain: Plain) -> list[str]:
        """A distilled model's second classifier is the first one, where that was replaced by several layers."""
        if not plain.library or not (plain.head_layers or plain.own_head):
            return []
        from tlx_torch.timm_models import layout

        twin = layout(plain.model).twin
        return [f"{at_path(twin)} = {at_path(plain.head)}"] if twin else []


def _versions(plain: Plain) -> dict[str, dict[str, int]]:
    """Return the version of its layout that a model asks its state_dict for: of the zoo only MNASNet does."""
    return {"": {"version": 2}} if plain.model.startswith("mnasnet") and not plain.own_module else {}


def _array(tensor: Tensor) -> Array:
    array: Any = tensor.detach().cpu().numpy()
    return np.array(array, order="C", copy=True)
