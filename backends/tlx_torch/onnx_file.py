"""A model as ONNX: from uint8 pixels to logits and probabilities, with PyTorch's own exporter and ONNX Runtime."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from tlx.backend import Array, Preprocess
from tlx.backend.module import own
from tlx.backend.module.net import Net
from tlx.errors import BackendError, BackendUnavailable, one_line
from tlx_torch.activations import plain
from tlx_torch.own import copied as own_copied

OPSET = 18  # of the exporter's own operations; ONNX Runtime has it since 1.14
INPUT, OUTPUTS = "images", ("logits", "probabilities")


class Served(torch.nn.Module):
    """A model together with what is done to pixels before it, and softmax after it."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, net: Net, preprocess: Preprocess) -> None:
        super().__init__()
        self.key, self.inner = net.output, plain(own_copied(net.module))
        for name in ("mean", "std"):
            values = torch.tensor(getattr(preprocess, name), dtype=torch.float64).reshape(1, 3, 1, 1)
            self.register_buffer(name, values.to(torch.float32))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits and probabilities of uint8 images [N, size, size, 3]."""
        pixels = (images.permute(0, 3, 1, 2).to(torch.float32) / 255 - self.mean) / self.std
        output = self.inner(pixels)
        logits = output if self.key is None else own.entries(output)[self.key]
        return logits, logits.softmax(1)


def _libraries() -> tuple[Any, Any]:
    """Import onnx and ONNX Runtime, and see that PyTorch's exporter has what it needs.

    Raises:
        BackendUnavailable: one of them is not installed, or does not import.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401 (PyTorch's exporter needs it)
    except Exception as error:  # whatever the modules of an environment raise
        name = getattr(error, "name", None)
        missing = isinstance(error, ModuleNotFoundError) and name in ("onnx", "onnxruntime", "onnxscript")
        problem = f"{name} is not installed" if missing else f"they do not import: {one_line(str(error))}"
        raise BackendUnavailable(
            f"ONNX needs onnx, onnxscript and onnxruntime; {problem}", fix='pip install "tlx[onnx]"'
        ) from error
    return onnx, onnxruntime


def exported(model: Net, preprocess: Preprocess, metadata: Sequence[tuple[str, str]]) -> bytes:
    """Return a model, which lies on the CPU in float32, as the content of an .onnx file.

    Raises:
        BackendError: PyTorch's exporter cannot write it.
    """
    onnx, _ = _libraries()
    served = Served(model, preprocess).eval()
    images = torch.zeros((2, preprocess.size, preprocess.size, 3), dtype=torch.uint8)
    before = logging.root.manager.disable
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            logging.disable(logging.WARNING)
            program = torch.onnx.export(
                served,
                (images,),
                dynamo=True,
                input_names=[INPUT],
                output_names=[*OUTPUTS],
                dynamic_shapes={"images": {0: torch.export.Dim("N", min=1)}},
                opset_version=OPSET,
                verbose=False,
            )
    except Exception as error:  # whatever a module's own code, or the exporter, raises
        cause = one_line(f"{type(error).__name__}: {error}")
        raise BackendError(
            f"PyTorch cannot export this model as ONNX: {cause}", fix="export .pth or .safetensors"
        ) from error
    finally:
        logging.disable(before)
    assert program is not None
    proto = program.model_proto
    onnx.helper.set_model_props(proto, dict(metadata))
    file = io.BytesIO()
    onnx.save_model(proto, file)
    return file.getvalue()


def outputs(content: bytes, images: Array) -> list[Array]:
    """Return logits and probabilities, float32 [N, classes], of uint8 images [N, size, size, 3]."""
    _, onnxruntime = _libraries()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return [np.asarray(output) for output in session.run(None, {INPUT: images})]
