"""Inputs and losses of the user's own: `batch=` and `loss=`, on real modules."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

import tlx
from support.backends import FRAMEWORKS
from support.ports import networks
from tlx import mapping
from tlx.errors import TlxError
from tlx.proof.result import Verdict

pytestmark = pytest.mark.needs(*FRAMEWORKS)

DRAWN = np.random.default_rng(0)
WORDS = DRAWN.integers(0, 11, (4, 7))
TWO = {
    "image": DRAWN.normal(size=(5, 6)).astype(np.float32),
    "extra": DRAWN.normal(size=(5, 4)),
    "mask": DRAWN.random((5, 8)) < 0.5,
}
LABELLED: dict[str, Any] = {"image": TWO["image"], "extra": TWO["extra"], "labels": DRAWN.integers(0, 3, 5)}
KERNELS = {f"{name}.weight": mapping.transpose(f"{name}.kernel") for name in ("a", "b", "h1", "h2")}
LAST = {
    "": mapping.layout("", (0, 2, 3, 1)),
    "c1.weight": mapping.transpose("conv.kernel", (2, 3, 1, 0)),
    "c1.bias": "conv.bias",
    "bn": "norm",
    "c2.weight": mapping.reshape(mapping.transpose("dense.kernel"), (2, 8)),
    "c2.bias": "dense.bias",
}


def compared(reference: Any, candidate: Any, batch: Any, **options: Any) -> Any:
    return tlx.parity(
        reference=reference, candidate=candidate, batch=batch, **{"copy_weights": True, "quick": True, **options}
    )


def cross_entropy(outputs: Any, batch: Any) -> Any:
    framework = importlib.import_module(type(batch["labels"]).__module__.partition(".")[0])
    return framework.nn.functional.cross_entropy(outputs["logits"], batch["labels"])


def test_an_embedding_with_a_tied_head_is_equal() -> None:
    report = compared(networks("torch").Words(), networks("oneflow").Words(), WORDS)
    assert report.verdict == Verdict.EQUAL, str(report)
    ran = {stage.id: stage.figure is not None for stage in report.stages}
    assert [name for name, was in ran.items() if was] == ["P0", "P1", "P3", "P4", "P5", "P6"] and len(ran) == 11
    assert len(next(s for s in report.stages if s.id == "P6").rows) >= 40
    assert "P7 not run: your own batches have no labels" in str(report) and "8 px" not in str(report)


@pytest.mark.parametrize("reference, candidate", [("emb", "head"), ("emb", "function"), ("function", "head")])
def test_one_parameter_goes_by_either_of_its_names(reference: str, candidate: str) -> None:
    net = networks("torch")
    report = compared(net.Words(reference), net.Words(candidate), WORDS)
    assert report.verdict == Verdict.EQUAL, str(report)


def test_a_parameter_that_is_no_longer_tied_is_refused() -> None:
    net = networks("torch")
    with pytest.raises(TlxError, match=r"emb.weight = head.weight is one parameter in the reference, .* tie them"):
        compared(net.Words(), net.Words("no"), WORDS)


def test_two_inputs_and_two_outputs_are_equal_with_other_weights_and_another_order() -> None:
    report = compared(
        networks("torch").Two(),
        networks("oneflow").TwoByKernels(),
        TWO,
        **{"rename": KERNELS, "optimizer": "adamw", "decay_on": "weights", "clip_norm": 0.1, "ema": 0.9},
    )
    assert report.verdict == Verdict.EQUAL, str(report)


def test_a_tuple_goes_in_by_place_and_comes_out_by_place() -> None:
    net = networks("torch")
    assert compared(net.Two(), net.Two(tuple), tuple(TWO.values())).verdict == Verdict.EQUAL


@pytest.mark.parametrize(
    ("batch", "loss"),
    [
        ([LABELLED, {**LABELLED, "labels": LABELLED["labels"][::-1].copy()}], cross_entropy),
        (LABELLED, (cross_entropy, lambda outputs, batch: cross_entropy(outputs, batch) + 0)),
    ],
    ids=["several batches", "a loss for each side"],
)
def test_a_loss_of_ones_own_reads_what_the_model_does_not_take(batch: Any, loss: Any) -> None:
    net = networks("torch")
    report = compared(net.Two(), net.TwoByKernels(), batch, loss=loss, rename=KERNELS)
    assert report.verdict == Verdict.EQUAL, str(report)


def test_another_loss_is_named() -> None:
    pair = (cross_entropy, lambda outputs, batch: cross_entropy(outputs, batch) * 1.001)
    report = compared(networks("torch").Two(), networks("oneflow").Two(), LABELLED, loss=pair)
    assert report.verdict == Verdict.DIFFERENT and "the loss function differs" in report.first


def test_a_model_over_nhwc_is_equal_to_one_over_nchw() -> None:
    images = DRAWN.normal(size=(2, 3, 6, 8))
    report = compared(networks("torch").Maps(), networks("oneflow").MapsLast(), images, rename=LAST, optimizer="adam")
    assert report.verdict == Verdict.EQUAL, str(report)


@pytest.mark.parametrize(
    ("reference", "candidate", "batch", "rename"),
    [
        ("Words", ("Words", "emb", "fault"), WORDS, {}),
        ("Two", ("TwoByKernels", "fault"), TWO, KERNELS),
        ("Maps", ("MapsLast", "fault"), DRAWN.normal(size=(2, 3, 6, 8)), LAST),
    ],
)
def test_a_fault_is_found(reference: str, candidate: tuple[str, ...], batch: Any, rename: Any) -> None:
    net = networks("torch")
    name, *arguments = candidate
    report = compared(getattr(net, reference)(), getattr(net, name)(*arguments), batch, rename=rename)
    assert report.verdict == Verdict.DIFFERENT and report.first


def test_the_layout_of_a_whole_model_is_derived() -> None:
    images = DRAWN.normal(size=(2, 3, 6, 8))
    with pytest.raises(TlxError) as error:
        compared(networks("torch").Maps(), networks("oneflow").MapsLast(), images)
    assert f"This map gives equal outputs: rename={LAST!r}" in str(error.value)


@pytest.mark.parametrize(
    ("batch", "options", "message"),
    [
        (5, {}, "batch is of type int; expected a NumPy array"),
        ([], {}, "batch is an empty list"),
        ((), {}, "batch is an empty tuple"),
        ({1: WORDS}, {}, "batch has the keys [1]; expected the names of inputs"),
        ({**TWO, "image": [1.0]}, {}, "batch['image'] is of type list"),
        ({**TWO, "image": np.array(["x"])}, {}, "batch['image'] holds <U1"),
        ({**TWO, "image": np.full((5, 6), np.nan)}, {}, "batch['image'] holds numbers that are not finite"),
        ({**TWO, "image": np.zeros((0, 6))}, {}, "batch['image'] is empty: [0, 6]"),
        ([TWO, LABELLED], {}, "expected the same names in each"),
        (LABELLED, {}, "forward takes no 'labels', and there is no loss= to read it"),
        ({"image": TWO["image"]}, {}, "missing 1 required positional argument: 'extra'"),
        ((TWO["extra"], TWO["image"]), {}, "torch cannot run the model on [5, 4], [5, 6] at 'a'"),
        (TWO, {"loss": 5}, "loss is 5; expected a function (outputs, batch) -> scalar tensor"),
        (TWO, {"loss": (len,)}, "or one for each side"),
        (TWO, {"loss": lambda outputs: 1}, "loss= failed on torch: TypeError"),
        (TWO, {"loss": lambda outputs, batch: 1.0}, "loss= returns float on torch; expected a tensor"),
        (TWO, {"loss": lambda outputs, batch: outputs["logits"]}, "loss= returns [5, 3] on torch"),
        (TWO, {"loss": lambda outputs, batch: outputs["logits"].mean().detach()}, "loss= has no gradient on torch"),
        (TWO, {"strategy": "diff_lr"}, "with batch= there is no head, so only 'full' can train"),
        (TWO, {"schedule": "plateau"}, "schedule 'plateau' reads a validation part"),
        (TWO, {"image_size": 32}, "image_size says nothing about inputs of your own"),
        (TWO, {"head": "h1"}, "Fix: leave out head"),
    ],
)
def test_a_mistake_is_one_line(batch: Any, options: dict[str, Any], message: str) -> None:
    net = networks("torch")
    with pytest.raises(TlxError) as error:
        compared(net.Two(), net.Two(), batch, **options)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_outputs_of_other_names_are_refused() -> None:
    net = networks("torch")

    class Other(net.Two):  # type: ignore[misc, name-defined]
        def forward(self, image: Any, extra: Any, mask: Any = None) -> Any:
            return dict(zip("xy", super().forward(image, extra, mask).values(), strict=True))

    with pytest.raises(TlxError, match="in the reference logits, value; in the candidate x, y"):
        compared(net.Two(), Other(), TWO)


def test_what_needs_a_batch_says_so() -> None:
    net = networks("torch")
    with pytest.raises(TlxError, match="Fix: for other inputs and outputs pass batch="):
        tlx.parity(reference=net.Two(), candidate=net.Two())
    with pytest.raises(TlxError, match=r"gives \[2, 2, 16, 16\] for two images, no logits"):
        tlx.parity(reference=net.Maps(), candidate=net.Maps(), image_size=16)
    with pytest.raises(TlxError, match="loss= needs batch="):
        tlx.parity(reference=net.Two(), candidate=net.Two(), loss=len)
    with pytest.raises(TlxError, match="batch is for two modules"):
        tlx.parity(batch=WORDS)


def normalised(by_hand: bool) -> Any:
    """A linear layer and a BatchNorm whose eps float32 does not hold."""
    torch = importlib.import_module("torch")

    class ByHand(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = (torch.nn.Parameter(start(8)) for start in (torch.ones, torch.zeros))
            self.register_buffer("running_mean", torch.zeros(8))
            self.register_buffer("running_var", torch.ones(8))
            self.register_buffer("num_batches_tracked", torch.tensor(0))

        def forward(self, x: Any) -> Any:
            mean, var = self.running_mean, self.running_var
            if self.training:
                mean, var = x.mean(0), x.var(0, unbiased=False)
                with torch.no_grad():
                    self.running_mean.mul_(0.9).add_(mean, alpha=0.1)
                    self.running_var.mul_(0.9).add_(x.var(0), alpha=0.1)
                    self.num_batches_tracked += 1
            return (x - mean) / (var + 1e-3).sqrt() * self.weight + self.bias

    norm = ByHand() if by_hand else torch.nn.BatchNorm1d(8, eps=1e-3)
    return torch.nn.Sequential(torch.nn.Linear(6, 8), norm, torch.nn.Tanh(), torch.nn.Linear(8, 3))


@pytest.mark.parametrize("first", [False, True])
def test_a_batch_norm_written_by_hand_is_equal(first: bool) -> None:
    """Its eps is not rounded to float32, so that of the framework's own layer must not be, either."""
    report = compared(normalised(first), normalised(not first), DRAWN.normal(size=(16, 6)))
    assert report.verdict == Verdict.EQUAL, str(report)
