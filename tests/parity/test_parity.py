"""`tlx parity` on the real frameworks: what is equal is called equal, and each planted fault is found and named."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tlx
from support.backends import FRAMEWORKS, each_backend
from tlx.backend import registry
from tlx.errors import TlxError
from tlx.proof.faults import faults
from tlx.proof.result import Verdict
from tlx.proof.selftest import selftest
from tlx.proof.words import summary

both = pytest.mark.needs(*FRAMEWORKS)


@pytest.mark.thorough  # README's command does the same
@both
def test_two_backends_are_equal_on_resnet18() -> None:
    report = tlx.parity(quick=True)
    assert report.verdict == Verdict.EQUAL, str(report)
    figures = {stage.id: stage for stage in report.stages}
    assert figures["P3"].facts["sizes"] == figures["P4"].facts["sizes"] == [32, 45]
    # 41 modules own parameters; further rows are their activations, pools and blocks, and the logits.
    assert len(figures["P3"].rows) == 2 * 76
    free, single = ([row for row in figures["P6"].rows if row.kind == kind] for kind in ("step", "locked"))
    assert [row.number for row in free] == list(range(40))
    assert [row.number for row in single] == [0, 1, 10, 11, 20, 21, 30, 39]
    assert sum("unfreeze" in " ".join(row.events) for row in free) == 1
    # Bits that are all the same would mean that one backend was compared with itself.
    assert figures["P3"].figure and figures["P6"].figure
    assert "G = " in summary(figures["P8"])


@both
@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.parametrize(("model", "optimizer"), [("mobilenet_v2", "sgd"), ("efficientnet_b0", "adamw")])
def test_chaos_is_no_difference(model: str, optimizer: Any) -> None:
    """From random weights one float64 unit grows to 1e-7 and more in 40 steps of such networks, on either backend."""
    report = tlx.parity(model=model, optimizer=optimizer, quick=True)
    assert report.verdict == Verdict.EQUAL, str(report)
    facts = next(stage for stage in report.stages if stage.id == "P6").facts
    assert facts["silent"] is not None and facts["silent"] > 20, "the free run shows nothing in the end"
    assert facts["locked"] == 8 and facts["shown"] < 1e-2, "and single steps do"


@pytest.mark.thorough  # the third tutorial does it with PyTorch, tests/proof/test_selftest.py with NumPy
@pytest.mark.slow
@pytest.mark.parametrize("name", each_backend("torch", "oneflow"))
def test_the_checker_finds_what_is_planted_in_a_backend(name: str) -> None:
    backend = registry.load(name)
    findings = list(selftest(backend))
    assert [finding.name for finding in findings if not finding.right] == []
    assert {finding.name for finding in findings} == {"", *(fault.name for fault in faults(backend))}
    messages = {finding.name: (finding.stage, finding.report.first) for finding in findings}
    for fault, (stage, words) in MESSAGES.items():
        assert messages[fault][0] == stage and words in messages[fault][1], messages[fault]


MESSAGES = {
    "BatchNorm's eps is 1e-3": ("P3", "norm (BatchNorm2d), fed the reference's own input, gives another output"),
    "BatchNorm's momentum is 0.01": ("P4", "running statistics are not (buffer norm.running_mean"),
    "BatchNorm keeps the biased variance": ("P4", "running statistics are not (buffer norm.running_var"),
    "a square weight is used transposed": ("P3", "the weight is used transposed"),
    "the pool pads on one side only": ("P3", "pool (MaxPool2d)"),
    "an activation is swapped": ("P3", "block.act (ReLU, in the candidate LeakyReLU)"),
    "a residual is added after the activation": ("P3", "between block.norm and block.act, in the code of block itself"),
    "dampening 0.1": ("P5", "optimizer slot momentum"),
    "gradients are set to zero, not None": ("P6", ""),
    "gradients are not clipped": ("P5", "gradients are not clipped at all"),
    "gradients are clipped by value": ("P5", "gradients are clipped by value"),
    "gradients are clipped by group": ("P5", "clipped by the norm of each group"),
    "each gradient is clipped by itself": ("P5", "clipped by the norm of each array"),
    "micro-batches are added, not weighed": ("P6", "the weights of the 2 micro-batches differ"),
    "gradients are kept from the step before": ("P6", "what a step leaves behind for the next"),
    "warm-up comes one step late": ("P6", "its rate differs"),
    "the moving average has another decay": ("P6", "the weights are equal: the moving average differs"),
    "the moving average begins at zero": ("P6", "the weights are equal: the moving average differs"),
    "the moving average is a step late": ("P6", "the weights are equal: the moving average differs"),
}


def attention(framework: str, fault: str = "") -> Any:
    """A model that neither zoo has: a stem, one attention block, pooled tokens. The port has other names."""
    fw = importlib.import_module(framework)
    nn = fw.nn
    port = framework == "oneflow"

    class Turned(nn.Linear):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            return fw.matmul(x, self.weight) + self.bias

    class Attention(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            stem, mix = ("patchify", "mixer") if port else ("stem", "attend")
            self.names = stem, mix
            setattr(self, stem, nn.Conv2d(3, 16, 8, stride=8))
            self.norm = nn.LayerNorm(16, eps=1e-3 if fault == "eps" else 1e-5)
            setattr(self, mix, Turned(16, 16) if fault == "transposed" else nn.Linear(16, 16))
            self.bn = nn.BatchNorm1d(16)
            self.act = nn.ReLU() if fault == "activation" else nn.GELU()
            self.out = nn.Linear(16, 5)

        def forward(self, x: Any) -> Any:
            stem, mix = (getattr(self, name) for name in self.names)
            tokens = self.norm(stem(x).flatten(2).transpose(1, 2))
            scores = fw.softmax(fw.matmul(tokens, tokens.transpose(1, 2)) / 4.0, dim=-1)
            tokens = tokens + mix(fw.matmul(scores, tokens))
            return self.out(self.act(self.bn(tokens.mean(1))))

    return Attention()


RENAME = {"stem": "patchify", "attend": "mixer"}


def ported(fault: str, **options: Any) -> Any:
    options = {"rename": RENAME, "copy_weights": True, "quick": True, "image_size": 32, **options}
    return tlx.parity(reference=attention("torch"), candidate=attention("oneflow", fault), **options)


@both
def test_a_port_is_equal() -> None:
    report = ported("")
    assert report.verdict == Verdict.EQUAL, str(report)


@both
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("eps", "norm (LayerNorm), fed the reference's own input, gives another output"),
        ("activation", "act (GELU, in the candidate ReLU)"),
        ("transposed", "With its square weight transposed it is equal"),
    ],
)
def test_a_fault_in_a_port_is_named(fault: str, words: str) -> None:
    report = ported(fault)
    assert report.verdict == Verdict.DIFFERENT and words in report.first, report.first


@both
def test_weights_that_were_not_brought_along_are_the_first_difference() -> None:
    report = ported("", copy_weights=False)
    assert report.verdict == Verdict.DIFFERENT and report.first.startswith(
        "The weights differ after loading: stem.weight"
    )


@both
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rename": {}}, "This map gives equal outputs: rename={'stem': 'patchify', 'attend': 'mixer'}"),
        ({"rename": {"stemm": "patchify"}}, "the reference has no 'stemm'. Did you mean 'stem'"),
        ({"rename": {"stem": "patch"}}, "the candidate has no 'patch'. Did you mean 'patchify'"),
        ({"head": "fc"}, "head is 'fc', which is no layer of the reference"),
        ({"seeds": 5}, "seeds needs two backends"),
    ],
)
def test_a_mistake_in_a_port_is_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TlxError) as error:
        ported("", **options)
    assert message in str(error.value) and "\n" not in str(error.value)


@both
def test_the_documented_table_lists_every_fault() -> None:
    """docs/parity.md holds what `tlx parity selftest --backend torch` printed."""
    text = (Path(__file__).parents[2] / "docs" / "parity.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in text.partition("| planted fault |")[2].splitlines()[2:]]
    listed = {row[0].removeprefix("| "): row[1] for row in rows}
    planted = {fault.name for fault in faults(registry.load("torch"))}
    assert listed.keys() == {"(none)", *planted} and all(listed[name] != "-" for name in planted)


@both
def test_a_module_against_a_name_is_refused() -> None:
    mixed: Callable[..., Any] = tlx.parity
    with pytest.raises(TlxError, match="one side is a backend and one a module"):
        mixed(reference="torch", candidate=attention("oneflow"))
    with pytest.raises(TlxError, match="object is no module of a framework that has a backend"):
        mixed(reference=attention("torch"), candidate=object())
