"""The lines that load an exported file without tlx and classify a photo, from the very pixels that tlx would see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tlx.backend import Preprocess
from tlx.backend.export import Exporter, Plain, quoted
from tlx.data.framing import Framing
from tlx.errors import TlxError

WIDTH = 110  # columns of the list of classes


def model_code(
    exporter: Exporter,
    plain: Plain,
    framing: Framing,
    preprocess: Preprocess,
    path: str,
    thresholds: Sequence[float] | None = None,
) -> str:
    """Return code of the framework alone: it makes the model, loads the file at `path` and classifies a photo.

    With thresholds several classes may apply to it, each from its own on.
    """
    imports, reading, state = exporter.load(plain, path)
    fw = exporter.alias
    inputs = f"{fw}.tensor(x)"
    lines = [
        *_imports(exporter.imports(plain), imports),
        "",
        f"classes = {_listed(plain.classes)}",
        *exporter.construct(plain),
        *reading,
        f"model.load_state_dict({state})",
        "model.eval()",
        "",
        *_pixels(framing, fw),
        f"mean, std = np.array({list(preprocess.mean)}, np.float32), np.array({list(preprocess.std)}, np.float32)",
        "x = ((np.array(image, np.float32) / 255 - mean) / std).transpose(2, 0, 1)[None].copy()",
        f"with {fw}.no_grad():",
    ]
    if not framing.enlarges:  # images of one size in memory are enlarged by the device, once they are normalised
        lines.append(f"    x = {fw}.nn.functional.interpolate({inputs}, {_enlarging(framing)})")
        inputs = "x"
    lines.append(f"    logits = {exporter.call(plain, inputs)}")
    if thresholds is None:
        lines.append("print(classes[logits.argmax(1).item()])")
    else:
        lines += [
            f"thresholds = {list(thresholds)}",
            "probabilities = logits[0].sigmoid().tolist()",
            "print([name for name, p, least in zip(classes, probabilities, thresholds) if p >= least])",
        ]
    return "\n".join(lines) + "\n"


SEVERAL_LABELS = (  # of which a class applies from its threshold on
    'thresholds = json.loads(session.get_modelmeta().custom_metadata_map["thresholds"])',
    "print([name for name, p, least in zip(classes, probabilities[0], thresholds) if p >= least])",
)


def onnx_code(framing: Framing, path: str, *, several: bool = False) -> str:
    """Return code of ONNX Runtime alone, which classifies a photo with the file at `path`."""
    lines = [
        "import json",
        "",
        *_imports(["import onnxruntime"], []),
        "",
        f"session = onnxruntime.InferenceSession({quoted(path)})",
        'classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])',
        "",
        *_pixels(framing, ""),
        'logits, probabilities = session.run(None, {"images": np.array(image)[None]})',
        *(SEVERAL_LABELS if several else ["print(classes[logits.argmax(1).item()])"]),
    ]
    return "\n".join(lines) + "\n"


def resizing(framing: Framing) -> str:
    """Describe in words how an image becomes one of the model's size: what an ONNX file leaves to its user."""
    fraction = framing.crop_fraction
    kept = "the whole image" if fraction == 1 else f"the central {fraction:g} of both sides"
    how = {
        "crop": f"the central square of {fraction:g} of the shorter side",
        "squash": f"{kept}, whose ratio of sides changes",
        "letterbox": f"{kept}, with margins of the colour {list(framing.fill)} that make it square",
    }[framing.aspect]
    resampling = framing.resampling
    smooth = "with antialias, as Pillow" if resampling.antialias else "without antialias"
    return f"RGB; {how}; resized to {framing.size} x {framing.size}, {resampling.interpolation}, {smooth}"


def _imports(framework: Sequence[str], more: Sequence[str]) -> list[str]:
    plain = ["import numpy as np", *framework]
    return sorted(line for line in plain if line.startswith("import")) + sorted(
        ["from PIL import Image, ImageOps", *more], key=str.lower
    )


def _listed(classes: Sequence[str]) -> str:
    """Write the class names as a list, several a line where there are many."""
    lines = [""]
    for name in classes:
        item = f"{quoted(name)}, "
        lines = [*lines[:-1], lines[-1] + item] if len(lines[-1] + item) <= WIDTH else [*lines, item]
    if len(lines) == 1:
        return f"[{lines[0].removesuffix(', ')}]"
    return "\n".join(["[", *(f"    {line.rstrip()}" for line in lines if line), "]"])


def _filter(framing: Framing) -> str:
    return f"Image.Resampling.{framing.resampling.interpolation.upper()}"


def _enlarging(framing: Framing) -> str:
    mode = framing.resampling.interpolation
    return f'size=({framing.size}, {framing.size}), mode="{mode}", align_corners=False'


def _pixels(framing: Framing, fw: str) -> list[str]:
    """Open a photo and make of it what `Framing.pixels` does; without a framework always with antialias."""
    lines = ['image = ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")']
    if not framing.resampling.antialias and not fw:
        framing = replace(framing, resampling=replace(framing.resampling, antialias=True))
        lines.append(
            "# This run resized without antialias, which Pillow cannot: what shrinks is a little smoother here."
        )
    elif not framing.resampling.antialias:
        if framing.aspect == "letterbox" and framing.enlarges and framing.crop_fraction < 1:
            problem = "no plain code crops an image, adds margins and resizes it without antialias, as this run does"
            raise TlxError(problem, fix="train with antialias, or use tlx.load_model")
        lines = [*_without_antialias(framing, fw), *lines]
    return [*lines, *(_on_host(framing) if framing.enlarges else _before_device(framing, bool(fw)))]


def _without_antialias(framing: Framing, fw: str) -> list[str]:
    mode = framing.resampling.interpolation
    return [
        "def resize(image, width, height):  # without antialias",
        f"    pixels = {fw}.tensor(np.array(image, np.float64).transpose(2, 0, 1)[None].copy())",
        f"    pixels = {fw}.nn.functional.interpolate(",
        f'        pixels, size=(height, width), mode="{mode}", align_corners=False',
        "    )",
        "    pixels = np.clip(np.rint(pixels.numpy()), 0, 255).astype(np.uint8)",
        "    return Image.fromarray(pixels[0].transpose(1, 2, 0).copy())",
        "",
        "",
    ]


def _resized(framing: Framing, width: object, height: object, box: str = "") -> str:
    if framing.resampling.antialias:
        return f"image.resize(({width}, {height}), {_filter(framing)}{box and f', box={box}'})"
    return f"resize(image, {width}, {height})"


def _on_host(framing: Framing) -> list[str]:
    size, smooth = framing.size, framing.resampling.antialias
    target = round(size / framing.crop_fraction)
    first = round((target - size) / 2)
    last = first + size
    inner = (
        f"({first} * width / {target}, {first} * height / {target}, {last} * width / {target}, "
        f"{last} * height / {target})"
    )
    sizes = "width, height = image.size"
    if framing.aspect == "crop":
        lines = [
            sizes,
            f"w, h = ({target}, {target} * height // width) if width <= height else "
            f"({target} * width // height, {target})",
            f"left, top = round((w - {size}) / 2), round((h - {size}) / 2)",
        ]
        if not smooth:
            return [*lines, f"image = resize(image, w, h).crop((left, top, left + {size}, top + {size}))"]
        box = f"(left * width / w, top * height / h, (left + {size}) * width / w, (top + {size}) * height / h)"
        return [*lines, f"box = {box}", f"image = {_resized(framing, size, size, 'box')}"]
    if framing.aspect == "squash":
        if first == 0:
            return [f"image = {_resized(framing, size, size)}"]
        if not smooth:
            return [f"image = resize(image, {target}, {target}).crop(({first}, {first}, {last}, {last}))"]
        return [sizes, f"image = {_resized(framing, size, size, inner)}"]
    lines = [
        sizes,
        f"box = {inner}",
        "across, down = box[2] - box[0], box[3] - box[1]",
        f"width, height = (max(1, round({size} * side / max(across, down))) for side in (across, down))",
        f"inner = {_resized(framing, 'width', 'height', 'box')}",
    ]
    return [*lines, *_with_margins(framing, "inner", str(size))]


def _before_device(framing: Framing, enlarges: bool) -> list[str]:
    """What the host does to images that the device `enlarges` (see `Framing.shrink`), or that Pillow enlarges here."""
    size, fraction, lines = framing.size, framing.crop_fraction, []
    if framing.aspect == "crop":
        side = "min(image.size)" if fraction == 1 else f"max(1, round({fraction} * min(image.size)))"
        lines = [f"width = height = {side}"]
    elif fraction < 1:
        lines = [f"width, height = (max(1, round({fraction} * side)) for side in image.size)"]
    if lines:
        lines += [
            "left, top = (image.width - width) // 2, (image.height - height) // 2",
            "image = image.crop((left, top, left + width, top + height))",
        ]
    if framing.aspect != "letterbox":
        resized = f"image = {_resized(framing, size, size)}"
        return [*lines, f"if max(image.size) > {size}:", f"    {resized}"] if enlarges else [*lines, resized]
    return [
        *lines,
        "longest = max(image.size)",
        f"if longest > {size}:",
        f"    width, height = (max(1, round({size} * side / longest)) for side in image.size)",
        f"    image = {_resized(framing, 'width', 'height')}",
        "side = max(image.size)",
        "inner = image",
        *_with_margins(framing, "inner", "side"),
        *([] if enlarges else [f"image = {_resized(framing, size, size)}"]),
    ]


def _with_margins(framing: Framing, inner: str, side: str) -> list[str]:
    return [
        f'image = Image.new("RGB", ({side}, {side}), {framing.fill})',
        f"image.paste({inner}, (({side} - {inner}.width) // 2, ({side} - {inner}.height) // 2))",
    ]
