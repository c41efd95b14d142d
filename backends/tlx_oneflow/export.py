"""A model taken elsewhere: folders that oneflow.load and flowvision read, and the code that does so.

Importing this module imports no framework, and asking for code does not either.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tlx.backend import Array, Arrays, Model
from tlx.backend.export import Plain, head_lines, quoted
from tlx.errors import TlxError
from tlx.models.published import PARAMETERS

STRIDE = 224  # pixels: what flowvision's Swin takes a multiple of, as it fills up no window of 7 patches
RESNEXT = "ResNet(flowvision.models.resnet.Bottleneck, [3, 4, 23, 3], groups=64, width_per_group=4"

# torchvision's name -> flowvision's class and options, where it has no function of that name, or one of other options.
CLASSES: dict[str, str] = {
    "resnext101_64x4d": f"resnet.{RESNEXT}",
    "vit_b_16": "vision_transformer.VisionTransformer(patch_size=16, embed_dim=768, depth=12, num_heads=12",
    "vit_b_32": "vision_transformer.VisionTransformer(patch_size=32, embed_dim=768, depth=12, num_heads=12",
    "vit_l_16": "vision_transformer.VisionTransformer(patch_size=16, embed_dim=1024, depth=24, num_heads=16",
    "vit_l_32": "vision_transformer.VisionTransformer(patch_size=32, embed_dim=1024, depth=24, num_heads=16",
    "vit_h_14": "vision_transformer.VisionTransformer(patch_size=14, embed_dim=1280, depth=32, num_heads=16",
    "swin_t": "swin_transformer.SwinTransformer(embed_dim=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24)",
    "swin_s": "swin_transformer.SwinTransformer(embed_dim=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24)",
    "swin_b": "swin_transformer.SwinTransformer(embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32)",
    "convnext_tiny": "convnext.ConvNeXt(dims=(96, 192, 384, 768), depths=(3, 3, 9, 3)",
    "convnext_small": "convnext.ConvNeXt(dims=(96, 192, 384, 768), depths=(3, 3, 27, 3)",
    "convnext_base": "convnext.ConvNeXt(dims=(128, 256, 512, 1024), depths=(3, 3, 27, 3)",
    "convnext_large": "convnext.ConvNeXt(dims=(192, 384, 768, 1536), depths=(3, 3, 27, 3)",
}

# By the beginning of a model's name: what makes flowvision's names of torchvision's, in this order.
NAMES: dict[str, tuple[tuple[str, str], ...]] = {
    "vit": (
        (r"^class_token$", "cls_token"),
        (r"^conv_proj\.", "patch_embed.proj."),
        (r"^encoder\.pos_embedding$", "pos_embed"),
        (r"^encoder\.ln\.", "norm."),
        (r"^heads\.head\.", "head."),
        (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
        (r"\.ln_([12])\.", r".norm\1."),
        (r"\.self_attention\.in_proj_", ".attn.qkv."),
        (r"\.self_attention\.out_proj\.", ".attn.proj."),
        (r"^(blocks\..*\.mlp)\.0\.", r"\1.fc1."),
        (r"^(blocks\..*\.mlp)\.3\.", r"\1.fc2."),
    ),
    "swi": (
        (r"^features\.0\.0\.", "patch_embed.proj."),
        (r"^features\.0\.2\.", "patch_embed.norm."),
        *((rf"^features\.{2 * i + 1}\.(\d+)\.", rf"layers.{i}.blocks.\1.") for i in range(4)),
        *((rf"^features\.{2 * i + 2}\.", f"layers.{i}.downsample.") for i in range(3)),
        (r"^(layers\..*\.mlp)\.0\.", r"\1.fc1."),
        (r"^(layers\..*\.mlp)\.3\.", r"\1.fc2."),
    ),
    "con": (
        *((rf"^features\.{2 * i}\.", f"downsample_layers.{i}.") for i in range(4)),
        *((rf"^features\.{2 * i + 1}\.(\d+)\.", rf"stages.{i}.\1.") for i in range(4)),
        (r"^(stages\..*)\.block\.0\.", r"\1.dwconv."),
        (r"^(stages\..*)\.block\.2\.", r"\1.norm."),
        (r"^(stages\..*)\.block\.3\.", r"\1.pwconv1."),
        (r"^(stages\..*)\.block\.5\.", r"\1.pwconv2."),
        (r"\.layer_scale$", ".gamma"),
        (r"^classifier\.0\.", "norm."),
        (r"^classifier\.2\.", "head."),
    ),
}


class OneFlowExporter:
    """OneFlow, with flowvision's models."""

    alias = "flow"

    def imports(self, plain: Plain) -> list[str]:
        """Import OneFlow and what builds the model."""
        return ["import oneflow as flow", *([] if plain.own_module else ["import flowvision"])]

    def check(self, plain: Plain) -> None:
        """Refuse what flowvision does not build, or not for images of the model's size."""
        if plain.own_module:
            return
        if plain.library or plain.model not in PARAMETERS:
            raise TlxError(f"flowvision has no model {plain.model!r}", fix="write a .pth or .safetensors file")
        if plain.model.startswith("swin") and plain.size % STRIDE:
            problem = f"flowvision's {plain.model} takes images of multiples of {STRIDE} pixels, and the run has"
            raise TlxError(f"{problem} {plain.size}", fix="write a .pth or .safetensors file, or train at 224 pixels")

    def construct(self, plain: Plain) -> list[str]:
        """Make the model with flowvision's own function or class, as torchvision has it, and then its head."""
        if plain.own_module:
            lines = [f"model = {plain.model}()  # your own module, as it was passed to tlx.run"]
            return [*lines, *head_lines(plain, plain.head, "flow.nn")]
        call = CLASSES.get(plain.model)
        sized = plain.model.startswith(("vit", "swin"))
        options = [f"num_classes={len(plain.classes)}", *([f"img_size={plain.size}"] if sized else [])]
        if call is None:
            options += [f"{name}={value}" for name, value in plain.options]
            lines = [f"model = flowvision.models.{plain.model}({', '.join(options)})"]
        else:
            lines = [f"model = flowvision.models.{call}, {', '.join(options)})"]
        if plain.model.startswith("regnet"):
            lines.append("model.stem[0].padding = (1, 1)  # as torchvision has it")
        return [*lines, *head_lines(plain, _head(plain), "flow.nn")]

    def load(self, plain: Plain, path: str) -> tuple[list[str], list[str], str]:
        """Read what oneflow.save, or safetensors, wrote."""
        if path.endswith(".safetensors"):
            values = f"{{name: flow.tensor(array) for name, array in load_file({quoted(path)}).items()}}"
            return ["from safetensors.numpy import load_file"], [], values
        return [], [], f"flow.load({quoted(path)})"

    def call(self, plain: Plain, inputs: str) -> str:
        """Call the model; flowvision's Inception leaves its transformation of inputs out, and both return more."""
        if plain.own_module or plain.model not in ("googlenet", "inception_v3"):
            return f"model({inputs}){plain.logits}"
        return f"model({inputs if plain.model == 'googlenet' else f'model._transform_input({inputs})'})[0]"

    def state(self, model: Model) -> dict[str, Array]:
        """Return the state_dict of a module of somebody's own."""
        return {name: _array(tensor) for name, tensor in model.module.state_dict().items()}

    def logits(self, model: Model) -> str:
        """Return what follows a call of a module of somebody's own."""
        from tlx.backend.module.own import expression_of_logits

        return expression_of_logits(model)

    def renamed(self, plain: Plain, arrays: Arrays) -> dict[str, Array]:
        """Return values in torchvision's names under flowvision's, where these differ."""
        family = plain.model[:3]
        if plain.own_module or family not in NAMES:
            return dict(arrays)
        values = {}
        for name, array in arrays.items():
            for pattern, replacement in NAMES[family]:
                name = re.sub(pattern, replacement, name)
            values[name] = array.ravel() if name.endswith(".gamma") else array
        return values if family != "swi" else {**values, **self._constants(plain)}

    def _constants(self, plain: Plain) -> dict[str, Array]:
        """Return what Swin computes when it is made, and saves: its tables of places, and its masks of windows."""
        from tlx_oneflow.bootstrap import flowvision  # noqa: F401 (the expression names it)

        made = eval(f"flowvision.models.{CLASSES[plain.model]}, img_size={plain.size})")
        return {name: _array(tensor) for name, tensor in made.named_buffers()}

    def write(self, plain: Plain, target: BinaryIO | Path, arrays: Arrays) -> None:
        """Write a folder with oneflow.save."""
        from tlx_oneflow.bootstrap import flow

        flow.save({name: flow.tensor(np.array(array)) for name, array in arrays.items()}, target)


def _head(plain: Plain) -> str:
    """Return the head's path in flowvision's own model."""
    return "head" if plain.model.startswith(("vit", "swin", "convnext")) and not plain.own_module else plain.head


def _array(tensor: Any) -> Array:
    return np.array(tensor.detach().cpu().numpy(), order="C", copy=True)
