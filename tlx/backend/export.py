"""What a backend offers to take a model elsewhere: files that the framework's own loaders read, and code for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from tlx.backend.preprocess import Preprocess
from tlx.backend.protocol import Array, Arrays, Model


@dataclass(frozen=True, slots=True)
class Plain:
    """A trained model, as far as code without tlx must know it.

    `head_layers` are the calls that make another head than the zoo's, such as ``"Linear(512, 10)"``, in their order.
    """

    model: str  # its name; of a module of somebody's own: its class
    classes: tuple[str, ...]
    head: str  # module path, in tlx's names
    size: int  # of the images, in pixels
    options: tuple[tuple[str, int], ...] = ()  # of the zoo's constructor, with the size where it is built for one
    library: str = ""  # such as "timm"; "": of the zoo, or somebody's own
    own_module: bool = False
    own_head: bool = False
    head_layers: tuple[str, ...] = ()
    logits: str = ""  # of an own module that returns several things: what follows its call, such as ["logits"]

    @property
    def own(self) -> bool:
        """Whether code of somebody's own is part of the model."""
        return self.own_module or self.own_head


def quoted(text: str) -> str:
    """Write a text as Python, in double quotes where it needs no escape."""
    return f'"{text}"' if repr(text) == f"'{text}'" else repr(text)


def at_path(path: str) -> str:
    """Return the expression of a module of `model`: ``"classifier.1"`` is ``model.classifier[1]``."""
    return "model" + "".join(f"[{part}]" if part.isdecimal() else f".{part}" for part in path.split("."))


def head_lines(plain: Plain, path: str, nn: str) -> list[str]:
    """Return the line that replaces the head at `path`, if any; `nn` is the framework's package of layers."""
    if plain.own_head:
        return [f"{at_path(path)} = head  # your own module, as it was passed to tlx.run"]
    layers = [f"{nn}.{layer}" for layer in plain.head_layers]
    if len(layers) > 1:
        layers = [f"{nn}.Sequential({', '.join(layers)})"]
    return [f"{at_path(path)} = {layer}" for layer in layers]


class Exporter(Protocol):
    """What a light module may offer as ``exporter()``. Making one imports no framework, nor does asking for code."""

    alias: str  # the framework's name in code

    def imports(self, plain: Plain) -> list[str]:
        """Return the lines that import the framework, and its zoo where the model is of it."""

    def check(self, plain: Plain) -> None:
        """Raise TlxError where the framework's own zoo cannot hold the model."""

    def construct(self, plain: Plain) -> list[str]:
        """Return the lines that make the model under the name `model`, without its values."""

    def load(self, plain: Plain, path: str) -> tuple[list[str], list[str], str]:
        """Return the imports that reading a file needs, lines that read it, and the expression of its state_dict."""

    def call(self, plain: Plain, inputs: str) -> str:
        """Return the expression that is the logits of `inputs`."""

    def state(self, model: Model) -> dict[str, Array]:
        """Return the state_dict of a built model, under every name that loading it strictly needs."""

    def logits(self, model: Model) -> str:
        """Return what follows a call of a built module in code to be its logits."""

    def renamed(self, plain: Plain, arrays: Arrays) -> dict[str, Array]:
        """Return values in tlx's names under those of the framework's own zoo."""

    def write(self, plain: Plain, target: BinaryIO | Path, arrays: Arrays) -> None:
        """Write a state_dict to an open file, or where the framework writes folders into a new one."""


class OnnxExporter(Exporter, Protocol):
    """An exporter that also writes ONNX."""

    def onnx(self, model: Model, preprocess: Preprocess, metadata: Sequence[tuple[str, str]]) -> bytes:
        """Return a model as ONNX: uint8 images [N, size, size, 3] to float32 logits and probabilities [N, classes].

        Probabilities are the softmax; with "thresholds" in the metadata, of images that may have several labels, the
        sigmoid of each logit.
        """

    def run_onnx(self, content: bytes, batches: Sequence[Array]) -> list[Array]:
        """Return the logits of each batch of images, as ONNX Runtime computes them on the CPU."""


class HubExporter(OnnxExporter, Protocol):
    """An exporter that also knows which models timm has in the same layout."""

    def timm_twin(self, plain: Plain, arrays: Arrays, inputs: Array) -> tuple[dict[str, Any], Array] | str:
        """Return what timm's config.json says of a model, with the logits of timm's model; or why timm has none."""
