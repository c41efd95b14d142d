"""The network as an ONNX graph, run by ONNX Runtime in float32 on its inference, recorded for `tlx parity compare`.

    python onnx_engine.py A B [FAULT]

needs onnx, onnxruntime and capture_writer.py beside it. A is the capture of the reference, B the folder to write.
"""

from __future__ import annotations

import sys

import numpy as np
import onnxruntime
from capture_writer import CaptureWriter, Reference, float32_exact
from onnx import TensorProto, helper, numpy_helper

FAULTS = ("BatchNorm's eps is 1e-3", "a square weight is used transposed", "LeakyReLU in place of ReLU")
LAYERS = ("stem", "norm", "conv", "mix", "fc")


def graph(weights, fault):
    """The network as a model whose outputs are those of its layers."""
    eps = 1e-3 if fault == FAULTS[0] else float32_exact(1e-5)
    transposed = 0 if fault == FAULTS[1] else 1
    activation = "LeakyRelu" if fault == FAULTS[2] else "Relu"
    statistics = ("weight", "bias", "running_mean", "running_var")
    nodes = [
        helper.make_node("Conv", ["x", "stem.weight", "stem.bias"], ["stem"], strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["stem", *(f"norm.{n}" for n in statistics)], ["norm"], epsilon=eps),
        helper.make_node("Relu", ["norm"], ["norm active"]),
        helper.make_node("Conv", ["norm active", "conv.weight", "conv.bias"], ["conv"], pads=[1, 1, 1, 1]),
        helper.make_node(activation, ["conv"], ["conv active"]),
        helper.make_node("GlobalAveragePool", ["conv active"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "mix.weight", "mix.bias"], ["mix"], transB=transposed),
        helper.make_node("Relu", ["mix"], ["mix active"]),
        helper.make_node("Gemm", ["mix active", "fc.weight", "fc.bias"], ["fc"], transB=1),
    ]
    values = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, "h", "w"])]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in LAYERS]
    made = helper.make_graph(nodes, "network", inputs, outputs, values)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


if __name__ == "__main__":
    capture, out, fault = sys.argv[1], sys.argv[2], "".join(sys.argv[3:4])
    served = Reference(capture)
    weights = {n: a.astype(np.float32) for n, a in served.weights.items() if a.dtype.kind == "f"}
    session = onnxruntime.InferenceSession(
        graph(weights, fault).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    with CaptureWriter(out, f"onnxruntime {onnxruntime.__version__}", "float32", served) as cap:
        cap.weights(weights)
        outputs = session.run(LAYERS, {"x": served.inputs.astype(np.float32)})
        for name, array in zip(LAYERS, outputs, strict=True):
            cap.output(name, array)
        cap.logits(outputs[-1])
