"""A model as ONNX: from uint8 pixels to logits and probabilities, with PyTorch's own exporter and ONNX Runtime."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
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
    """A model together with what is done to pixels before it, and softmax after it, or sigmoid for several labels."""

    pixel_mean: torch.Tensor
    pixel_std: torch.Tensor

    def __init__(self, net: Net, preprocess: Preprocess, several: bool) -> None:
        super().__init__()
        self.several = several
        self.key, self.inner = net.output, plain(own_copied(net.module))
        for name in ("mean", "std"):
            values = torch.tensor(getattr(preprocess, name), dtype=torch.float64).reshape(1, 3, 1, 1)
            self.register_buffer(f"pixel_{name}", values.to(torch.float32))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits and probabilities of uint8 images [N, size, size, 3]."""
        pixels = (images.permute(0, 3, 1, 2).to(torch.float32) / 255 - self.pixel_mean) / self.pixel_std
        output = self.inner(pixels)
        logits = output if self.key is None else own.entries(output)[self.key]
        return logits, logits.sigmoid() if self.several else logits.softmax(1)


def _libraries() -> tuple[Any, Any, Any]:
    """Import onnx, ONNX Runtime, and the optimizer of onnxscript, which PyTorch's exporter needs too.

    Raises:
        BackendUnavailable: one of them is not installed, or does not import.
    """
    try:
        import onnx
        import onnxruntime
        from onnxscript import optimizer
    except Exception as error:  # whatever the modules of an environment raise
        name = getattr(error, "name", None)
        missing = isinstance(error, ModuleNotFoundError) and name in ("onnx", "onnxruntime", "onnxscript")
        problem = f"{name} is not installed" if missing else f"they do not import: {one_line(str(error))}"
        raise BackendUnavailable(
            f"ONNX needs onnx, onnxscript and onnxruntime; {problem}", fix='pip install "tlx[onnx]"'
        ) from error
    return onnx, onnxruntime, optimizer


def exported(model: Net, preprocess: Preprocess, metadata: Sequence[tuple[str, str]]) -> bytes:
    """Return a model, which lies on the CPU in float32, as the content of an .onnx file.

    With "thresholds" in the metadata several labels may apply to an image, and probabilities are sigmoids.

    Raises:
        BackendError: PyTorch's exporter cannot write it.
    """
    onnx, _, optimizer = _libraries()
    served = Served(model, preprocess, "thresholds" in dict(metadata)).eval()
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
                optimize=False,
                verbose=False,
            )
            assert program is not None
            # What it folds it computes with ONNX's own Python, pixel by pixel: some minutes for the positions of a ViT.
            optimizer.optimize_ir(program.model, should_fold=lambda node: False if node.op_type == "Resize" else None)
            return _serialized(onnx, program.model_proto, dict(metadata))
    except Exception as error:  # whatever a module's own code, or the exporter, raises
        cause = one_line(f"{type(error).__name__}: {error}")
        raise BackendError(
            f"PyTorch cannot export this model as ONNX: {cause}", fix="export .pth or .safetensors"
        ) from error
    finally:
        logging.disable(before)


def _serialized(onnx: Any, proto: Any, metadata: Mapping[str, str]) -> bytes:
    onnx.helper.set_model_props(proto, metadata)
    for part in (proto.graph, *proto.graph.node, *proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        part.ClearField("metadata_props")  # lines of code, and the paths of their files on this machine
        part.ClearField("doc_string")
    content: bytes = proto.SerializeToString()  # at most 2 GB
    return content


def logits(content: bytes, batches: Sequence[Array]) -> list[Array]:
    """Return the logits, float32 [N, classes], of each batch of uint8 images [N, size, size, 3]."""
    _, onnxruntime, _ = _libraries()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        return [np.asarray(session.run(OUTPUTS[:1], {INPUT: images})[0]) for images in batches]
    except Exception as error:  # it has no common class
        cause = one_line(str(error))
        raise BackendError(f"ONNX Runtime cannot run this model: {cause}", fix="export .pth or .safetensors") from error
