"""Networks as people write them, handed over as they are: each works, and says what is to be said, or is refused."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tlx
from support.backends import FRAMEWORKS, each_backend
from support.features import outcome
from tlx.errors import Interrupted, TlxError
from tlx.training.metrics import Stepped

IMAGES = np.random.default_rng(0).integers(0, 256, (24, 16, 16, 3), dtype=np.uint8)
DATA = {"train": (IMAGES, [i % 3 for i in range(24)]), "test": (IMAGES[:8], [i % 3 for i in range(8)])}
FIELDS: dict[str, Any] = {
    "data": DATA,
    "image_size": 16,
    "val_fraction": 0,
    "batch_size": 8,
    "epochs": 1,
    "augment": "none",
    "precision": "float32",
    "strategy": "full",
    "lr": 0.05,
    "feature_cache": "run",
}
Network = Callable[[Any], Any]


def framework(backend: str) -> Any:
    if backend == "oneflow":
        importlib.import_module("tlx_oneflow.bootstrap")  # it loads what the wheel lacks
    return importlib.import_module(backend)


def network(fw: Any, forward: Callable[..., Any], **layers: Any) -> Any:
    """A small network whose forward pass is the given one."""

    class Net(fw.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.conv = fw.nn.Conv2d(3, 6, 3, padding=1)
            self.pool = fw.nn.MaxPool2d(4)
            self.fc1 = fw.nn.Linear(96, 8)
            self.fc = fw.nn.Linear(8, 3)
            for name, layer in layers.items():
                setattr(self, name, layer)

        def body(self, x: Any) -> Any:
            return self.fc1(self.pool(self.conv(x).relu()).view(-1, 6 * 4 * 4)).relu()

        def forward(self, x: Any) -> Any:
            return forward(self, x)

    return Net()


def plain(fw: Any) -> Any:
    return network(fw, lambda net, x: net.fc(net.body(x)))


def functional_dropout(fw: Any) -> Any:
    return network(fw, lambda net, x: net.fc(fw.nn.functional.dropout(net.body(x), 0.5, net.training)))


def always_dropping(fw: Any) -> Any:
    return network(fw, lambda net, x: net.fc(fw.nn.functional.dropout(net.body(x), 0.5)))


def of_its_own(fw: Any) -> Any:
    """Noise of the framework, a layer that Python drops now and then, and noise of NumPy."""

    def forward(net: Any, x: Any) -> Any:
        x = net.body(x + fw.rand(*x.shape))
        x = x * 2 if net.training and random.random() < 0.5 else x
        return net.fc(x + float(np.random.rand()))

    return network(fw, forward)


def channel_dropout(fw: Any) -> Any:
    drop = fw.nn.Dropout2d(0.5)
    return network(fw, lambda net, x: net.fc(net.fc1(net.pool(net.drop(net.conv(x))).flatten(1))), drop=drop)


def several_outputs(fw: Any) -> Any:
    """An auxiliary classifier comes first; `fc` is the head."""

    def forward(net: Any, x: Any) -> Any:
        x = net.body(x)
        return {"aux": net.aux(x), "features": x, "main": net.fc(x)}

    return network(fw, forward, aux=fw.nn.Linear(8, 3))


def two_heads(fw: Any) -> Any:
    return network(fw, lambda net, x: (net.other(y := net.body(x)), net.fc(y)), other=fw.nn.Linear(8, 3))


@dataclass
class Output:
    loss: Any
    logits: Any


def hugging(fw: Any) -> Any:
    return network(fw, lambda net, x: Output(None, net.fc(net.body(x))))


def tied_layers(fw: Any) -> Any:
    net = network(fw, lambda net, x: net.fc(net.fc2(net.body(x))), fc2=fw.nn.Linear(8, 8), fc3=fw.nn.Linear(8, 8))
    net.fc3 = net.fc2
    return net


def tied_parameters(fw: Any) -> Any:
    layers = {"one": fw.nn.Linear(8, 8), "two": fw.nn.Linear(8, 8)}
    net = network(fw, lambda net, x: net.fc(net.two(net.one(net.body(x)))), **layers)
    net.two.weight = net.one.weight
    return net


def frozen(fw: Any) -> Any:
    net = plain(fw).double().eval()
    for param in net.parameters():
        param.requires_grad_(False)
    return net


def constants(fw: Any) -> Any:
    """A buffer at the root, and code that tells training from evaluation."""
    net = network(fw, lambda net, x: net.fc(net.body(x / net.scale) * (2.0 if net.training else 1.0)))
    net.register_buffer("scale", fw.tensor(2.0))
    return net


def bare_norms(fw: Any) -> Any:
    """BatchNorm without affine, and BatchNorm that always takes the batch's statistics."""
    norms = {"bare": fw.nn.BatchNorm2d(6, affine=False), "batch": fw.nn.BatchNorm1d(8, track_running_stats=False)}
    return network(fw, lambda net, x: net.fc(net.batch(net.fc1(net.pool(net.bare(net.conv(x))).flatten(1)))), **norms)


def softmax(fw: Any) -> Any:
    return network(fw, lambda net, x: fw.nn.functional.softmax(net.fc(net.body(x)), dim=1))


def hooked(fw: Any) -> Any:
    net = plain(fw)
    net.fc1.register_forward_hook(lambda module, args, output: output * 2)
    return net


def remembering(fw: Any) -> Any:
    """It keeps the features of its last pass, as the tutorials of Grad-CAM do."""

    def forward(net: Any, x: Any) -> Any:
        net.features = net.body(x)
        return net.fc(net.features)

    net = network(fw, forward)
    net(fw.ones(2, 3, 16, 16))
    return net


# What works: the network, and what its run notes.
WORKS: dict[Network, str] = {
    plain: "",
    functional_dropout: "",
    always_dropping: "draws random numbers in evaluation too",
    of_its_own: "draws random numbers in evaluation too",
    channel_dropout: "",
    several_outputs: "it returns {'aux': [2, 3], 'features': [2, 8], 'main': [2, 3]}; the logits are 'main'",
    two_heads: "the logits are 1",
    hugging: "the logits are 'logits'",
    tied_layers: "one value under several names, saved under the first: fc2.weight = fc3.weight",
    tied_parameters: "one value under several names, saved under the first: one.weight = two.weight",
    frozen: "",
    constants: "",
    bare_norms: "each image's outputs depend on the others of its batch",
    softmax: "its outputs look like probabilities",
    hooked: "",
    remembering: "",
}


def values(tensor: Any) -> Any:
    return np.array(tensor.detach().numpy(), copy=True)


def run(net: Any, backend: str, out: Path, **fields: Any) -> Any:
    return tlx.run(**{"head": "fc", **FIELDS, "model": net, "backend": backend, "out": str(out), **fields})


@pytest.mark.parametrize("backend", each_backend(*FRAMEWORKS))
@pytest.mark.parametrize("make", WORKS, ids=lambda make: make.__name__)
def test_a_strangers_network_trains_and_can_be_repeated(
    make: Network, backend: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = make(framework(backend))
    first = run(net, backend, tmp_path / "a")
    assert WORKS[make] in capsys.readouterr().err
    before = random.getstate()  # not earlier: PyTorch imports parts of itself late, and draws
    second = run(net, backend, tmp_path / "b", quiet=True)
    assert random.getstate() == before, "the user's random state has changed"
    assert outcome(first) == outcome(second)
    assert tlx.evaluate(first.run_dir, data=DATA, model=net, quiet=True)["test_accuracy"] == first.test_accuracy
    start = dict(net.named_parameters())
    moved = {name for name, p in first.model.named_parameters() if not np.array_equal(values(p), values(start[name]))}
    assert moved >= {"conv.weight", "fc1.weight", "fc.weight"}


@pytest.mark.parametrize("backend", each_backend(*FRAMEWORKS))
@pytest.mark.parametrize(
    "make",
    [functional_dropout, constants, bare_norms, plain, channel_dropout, tied_parameters, several_outputs],
    ids=lambda make: make.__name__,
)
def test_its_cached_features_change_nothing(make: Network, backend: str, tmp_path: Path) -> None:
    net = make(framework(backend))
    fields = {"strategy": "feature_extract", "epochs": 2, "quiet": True}
    cached, plainly = (run(net, backend, tmp_path / c, feature_cache=c, **fields) for c in ("run", "off"))
    assert outcome(cached) == outcome(plainly)


@pytest.mark.parametrize("backend", each_backend(*FRAMEWORKS))
def test_its_random_numbers_go_on_in_the_middle_of_an_epoch(backend: str, tmp_path: Path) -> None:
    net = of_its_own(framework(backend))
    whole = run(net, backend, tmp_path / "a", quiet=True, micro_batch=4)
    steps = 0

    def stop(event: Any) -> None:
        nonlocal steps
        steps += isinstance(event, Stepped)
        if steps == 2:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        run(net, backend, tmp_path / "b", quiet=True, micro_batch=4, on_event=stop)
    assert outcome(tlx.run(resume=tmp_path / "b", data=DATA, model=net, quiet=True)) == outcome(whole)


@pytest.mark.parametrize("backend", each_backend(*FRAMEWORKS))
def test_a_tied_parameter_loads_from_a_file_with_both_its_names(backend: str, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    net = tied_parameters(framework(backend))
    state = {name: np.array(value.numpy(), copy=True) for name, value in net.state_dict().items()}
    save_file(state, tmp_path / "weights.safetensors")
    fields = {"strategy": "feature_extract", "quiet": True, "weights": str(tmp_path / "weights.safetensors")}
    result = run(net, backend, tmp_path / "a", **fields)
    saved = load_file(result.run_dir / "model.safetensors")
    assert "two.weight" not in saved and np.array_equal(saved["one.weight"], state["one.weight"])
    save_file({**state, "two.weight": state["two.weight"] + 1}, tmp_path / "weights.safetensors")
    with pytest.raises(TlxError, match=r"one.weight and two.weight are one value in it, but differ|one value"):
        run(net, backend, tmp_path / "b", **fields)


@pytest.mark.parametrize("backend", each_backend(*FRAMEWORKS))
def test_without_weights_only_layers_are_drawn_anew(backend: str, tmp_path: Path) -> None:
    net = constants(framework(backend))
    result = run(net, backend, tmp_path / "a", strategy="scratch", quiet=True)
    assert float(result.model.scale) == 2.0


def tied_head(fw: Any) -> Any:
    net = network(fw, lambda net, x: net.fc(net.same(net.body(x))), same=fw.nn.Linear(8, 3), fc=fw.nn.Linear(8, 3))
    net.fc.weight = net.same.weight
    return net


def no_logits(fw: Any) -> Any:
    return network(fw, lambda net, x: (net.body(x), net.other(net.body(x))), other=fw.nn.Linear(8, 3))


def other_size(fw: Any) -> Any:
    return network(fw, lambda net, x: net.fc(net.fc1(net.conv(x).view(-1, 96)).relu()))


def two_inputs(fw: Any) -> Any:
    net = plain(fw)
    net.forward = lambda x, lengths: x
    return net


def no_gradients(fw: Any) -> Any:
    def forward(net: Any, x: Any) -> Any:
        with fw.no_grad():
            return net.fc(net.body(x))

    return network(fw, forward)


def second_name(fw: Any) -> Any:
    return network(fw, lambda net, x: net.fc(net.body(x)), whole=fw.nn.Sequential(fc := fw.nn.Linear(8, 3)), fc=fc)


def nothing(fw: Any) -> Any:
    return fw.nn.Sequential(fw.nn.Flatten())


def locked(fw: Any) -> Any:
    import threading

    net = plain(fw)
    net.lock = threading.Lock()
    return net


# What is refused: the network, the head, and how the one line goes.
REFUSED: dict[Network, tuple[Any, str]] = {
    tied_head: ("fc", r"the head shares a parameter with the backbone: fc.weight is same.weight. Untie"),
    no_logits: ("fc", r"returns {0: \[2, 8\], 1: \[2, 3\]}; none of these are logits \[2, 3\] of its head 'fc'"),
    other_size: ("fc", r"returns \[32, 3\] instead of logits \[2, 3\]; is image_size what its view"),
    two_inputs: ("fc", r"cannot run the model on \[2, 3, 16, 16\]: TypeError: .*lengths"),
    no_gradients: ("fc", r"cuts its gradients off"),
    second_name: ("whole.0", r"Did you mean|are one module; name the head"),
    nothing: ("fc", r"without parameters; there is nothing to train"),
    locked: ("fc", r"cannot be copied, as a run must: TypeError: cannot pickle '_thread.lock' object"),
    channel_dropout: ("drop", r"must be a Linear or Conv2d layer, but it is a Dropout2d"),
    plain: ("fc9", r"there is no such module. Did you mean 'fc' or 'fc1'"),
}


@pytest.mark.parametrize("backend", each_backend(*FRAMEWORKS))
@pytest.mark.parametrize("make", REFUSED, ids=lambda make: make.__name__)
def test_what_cannot_be_trained_is_refused_in_one_line(make: Network, backend: str, tmp_path: Path) -> None:
    head, message = REFUSED[make]
    with pytest.raises(TlxError, match=message) as error:
        run(make(framework(backend)), backend, tmp_path / "a", head=head, quiet=True)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "a").exists(), "nothing is left of a run that never began"
