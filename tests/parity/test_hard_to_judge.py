"""Modules that are hard to judge: what cannot be replayed is said, what is equal is not blamed, and nothing crashes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support.judged import judged
from tlx.proof.report import Report
from tlx.proof.result import Alone, Between, Stage, Verdict
from tlx.proof.words import summary

pytestmark = pytest.mark.needs("torch")


def network(body: Any, head: int = 8) -> Any:
    """A stem, a body of one's own, which is named `body`, a mean, and a head."""
    from torch import nn

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, padding=1)
            self.body = body
            self.fc = nn.Linear(head, 5)

        def forward(self, x: Any) -> Any:
            return self.fc(self.body(self.stem(x)).flatten(1).reshape(x.shape[0], head, -1).mean(2))

    return Network()


def module(forward: Any, **layers: Any) -> Any:
    """A module with layers, whose forward pass is a function of itself and its input."""
    from torch import nn

    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, layer in layers.items():
                setattr(self, name, layer)

        def forward(self, *args: Any, **options: Any) -> Any:
            return forward(self, *args, **options)

    return Body()


def of(report: Report, stage: str) -> Stage:
    return next(found for found in report.stages if found.id == stage)


def blamed(report: Report) -> Any:
    assert report.verdict == Verdict.DIFFERENT and report.difference is not None, str(report)
    return report.difference.replay


def test_a_layer_norm_written_by_hand_is_equal(tmp_path: Path) -> None:
    import torch
    from torch import nn

    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(8))
            self.bias = nn.Parameter(torch.zeros(8))

        def forward(self, x: Any) -> Any:
            mean = x.mean(-1, keepdim=True)
            return (x - mean) / ((x - mean).pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * self.weight + self.bias

    def last(body: Any, x: Any) -> Any:
        return body.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    report = judged(network(module(last, norm=nn.LayerNorm(8))), network(module(last, norm=Norm())), tmp_path)
    assert report.verdict == Verdict.EQUAL and all(row.passed for row in of(report, "P1").rows), str(report)


def test_work_that_is_shared_out_otherwise_is_equal(tmp_path: Path) -> None:
    """A factor in another place, and tensors laid out otherwise, within a module that gives the same."""
    from torch import nn

    def plain(body: Any, x: Any) -> Any:
        return body.act(body.one(x) * 0.5)

    def early(body: Any, x: Any) -> Any:
        return body.act(body.one(x * 0.5) - 0.5 * body.one.bias.reshape(1, -1, 1, 1))

    def channels_last(body: Any, x: Any) -> Any:
        return body.act((body.one(x) * 0.5).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def layers() -> dict[str, Any]:
        return {"one": nn.Conv2d(8, 8, 1), "act": nn.ReLU()}

    for number, other in enumerate((early, channels_last)):
        pair = network(module(plain, **layers())), network(module(other, **layers()))
        report = judged(*pair, tmp_path / str(number))
        assert report.verdict == Verdict.EQUAL, str(report)
    causes = [row.cause for row in of(report, "P3").rows]
    assert "laid out" in causes


def test_calls_of_a_shared_module_in_another_order_or_at_once_are_equal(tmp_path: Path) -> None:
    import torch
    from torch import nn

    def in_order(body: Any, x: Any) -> Any:
        first, second = body.mix(x), body.mix(-x)
        return body.act(first) - second

    def reversed_(body: Any, x: Any) -> Any:
        second, first = body.mix(-x), body.mix(x)
        return body.act(first) - second

    def at_once(body: Any, x: Any) -> Any:
        first, second = body.mix(torch.cat([x, -x])).chunk(2)
        return body.act(first) - second

    def layers() -> dict[str, Any]:
        return {"mix": nn.Conv2d(8, 8, 1), "act": nn.ReLU()}

    for number, other in enumerate((reversed_, at_once)):
        pair = network(module(in_order, **layers())), network(module(other, **layers()))
        report = judged(*pair, tmp_path / str(number))
        assert report.verdict == Verdict.EQUAL, str(report)


@pytest.mark.parametrize("where", ["in a module", "between modules", "through a detach"])
def test_a_backward_pass_of_one_s_own_is_named(where: str, tmp_path: Path) -> None:
    import torch
    from torch import nn

    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, x: Any) -> Any:
            return x * 2

        @staticmethod
        def backward(context: Any, grad: Any) -> Any:
            return grad  # twice that would be right

    def wrong(x: Any) -> Any:
        return x.detach() * 2 if where == "through a detach" else Doubled.apply(x)

    def pass_through(body: Any, x: Any) -> Any:
        return body.two(body.act(body.one(x)))

    def between(body: Any, x: Any) -> Any:
        return body.two(body.function(body.one(x)) + 0.1 * x)

    layers = {"one": nn.Conv2d(8, 8, 1), "two": nn.Conv2d(8, 8, 1)}
    bodies = []
    for function in (lambda x: x * 2, wrong):
        act = module(lambda _, x, function=function: function(x))
        body = module(pass_through if where == "in a module" else between, **layers, act=act)
        body.function = function
        bodies.append(body)
    report = judged(network(bodies[0]), network(bodies[1]), tmp_path)
    found = blamed(report)
    assert of(report, "P3").passed and report.first.startswith("Outputs and loss are equal and gradients are not")
    if where == "in a module":
        assert (found.path, found.quantity) == ("body.act", "input gradient"), report.first
    else:
        assert (found.previous, found.path, found.within) == ("body.one", "body.two", "body"), report.first


def test_a_model_that_takes_one_size_only_is_no_failure(tmp_path: Path) -> None:
    from torch import nn

    def flat(body: Any, x: Any) -> Any:
        return body.one(x.flatten(1))

    one, other = (network(module(flat, one=nn.Linear(8 * 16 * 16, 8))) for _ in range(2))
    report = judged(one, other, tmp_path)
    assert report.verdict == Verdict.EQUAL and of(report, "P3").facts["sizes"] == [16], str(report)
    assert "at 16 px; the reference takes one size only (torch cannot run the model on" in summary(of(report, "P3"))


def test_a_candidate_that_fails_at_the_other_size_differs_in_one_line(tmp_path: Path) -> None:
    from torch import nn

    def even(body: Any, x: Any) -> Any:
        if x.shape[-1] % 2:
            raise ValueError("an even size is needed")
        return body.one(x)

    pair = network(module(lambda b, x: b.one(x), one=nn.Conv2d(8, 8, 1))), network(module(even, one=nn.Conv2d(8, 8, 1)))
    report = judged(*pair, tmp_path)
    assert report.verdict == Verdict.DIFFERENT
    assert report.first == "At 29 px the candidate cannot run, and the reference can: an even size is needed."


class Box:
    """Holds a tensor that no one sees."""

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor


@pytest.mark.parametrize("kind", ["object", "draws", "no module"])
def test_what_cannot_be_replayed_is_said_and_the_search_goes_on(kind: str, tmp_path: Path) -> None:
    import torch
    from torch import nn

    def body_of(wrong: bool) -> Any:
        factor = 1.1 if wrong else 1.0

        def inner(self: Any, box: Any) -> Any:
            x = box.tensor if isinstance(box, Box) else box
            if kind == "draws" and self.training:
                x = x + torch.rand(1, dtype=x.dtype)
            return self.one(x) * (factor if kind != "no module" else 1.0)

        def outer(self: Any, x: Any) -> Any:
            if kind == "no module":
                return self.part.one(x) * factor if wrong else self.part(x)
            if kind == "draws" and self.training:
                torch.rand(1)  # so a module that draws by itself is not the first to draw
            return self.part(Box(x) if kind == "object" else x)

        return module(outer, part=module(inner, one=nn.Conv2d(8, 8, 1)))

    report = judged(network(body_of(False)), network(body_of(True)), tmp_path)
    found = blamed(report)
    reasons = {**of(report, "P3").facts["not_replayed"], **of(report, "P4").facts["not_replayed"]}
    if kind == "object":
        assert isinstance(found, Between) and (found.previous, found.path) == ("body.part.one", "body.part")
        assert reasons["body.part"] == "it takes a Box"
    elif kind == "draws":
        assert isinstance(found, Between) and (found.previous, found.path) == ("body.part.one", "body.part")
        assert reasons["body.part"] == "repeated, it gives another output: it draws numbers or keeps a state"
    else:
        assert isinstance(found, Between) and (found.previous, found.path) == ("body.part.one", "body")
        assert reasons["body.part"] == "no module of this name is called here"
    assert "\n" not in report.first


def test_a_dropout_that_acts_in_evaluation_is_named(tmp_path: Path) -> None:
    from torch import nn
    from torch.nn import functional

    def body_of(wrong: bool) -> Any:
        drop = module(lambda m, x: functional.dropout(x, 0.5, True) if wrong and not m.training else x)
        return module(lambda m, x: m.drop(m.one(x)), one=nn.Conv2d(8, 8, 1), drop=drop)

    report = judged(network(body_of(False)), network(body_of(True)), tmp_path)
    assert isinstance(blamed(report), Alone) and blamed(report).path == "body.drop", report.first
    assert report.first.startswith("In eval mode the first output that differs is that of body.drop")


@pytest.mark.parametrize("kind", ["nan", "empty", "none"])
def test_outputs_without_numbers_are_one_line(kind: str, tmp_path: Path) -> None:
    """NaN, no element, or no tensor at all."""
    from torch import nn

    def body_of(wrong: bool) -> Any:
        def part(m: Any, x: Any) -> Any:
            if kind == "nan":
                return x / (x * 0) if wrong else x
            return x[:0] if kind == "empty" else None

        def outer(m: Any, x: Any) -> Any:
            y, extra = m.one(x), m.part(x)
            return extra + y if kind == "nan" else y * (1.1 if wrong else 1.0)

        return module(outer, one=nn.Conv2d(8, 8, 1), part=module(part))

    report = judged(network(body_of(False)), network(body_of(True)), tmp_path)
    found = blamed(report)
    assert "\n" not in report.first
    if kind == "nan":
        assert isinstance(found, Alone) and found.path == "body.part" and "not finite" in report.first, report.first
    else:
        assert isinstance(found, Between) and found.path == "body", report.first


@pytest.mark.parametrize("wrong", [False, True])
def test_a_transformer_layer_of_the_framework_is_looked_into(wrong: bool, tmp_path: Path) -> None:
    from torch import nn

    def body_of(wrong: bool) -> Any:
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, activation="relu")
        if wrong:
            layer.norm1.eps = 1e-2
        return module(lambda m, x: m.layer(x.flatten(2).transpose(1, 2)).transpose(1, 2), layer=layer)

    report = judged(network(body_of(False)), network(body_of(wrong)), tmp_path)
    assert report.verdict == (Verdict.DIFFERENT if wrong else Verdict.EQUAL), str(report)
    if wrong:
        assert blamed(report).path == "body.layer.norm1", report.first


def test_a_block_that_is_computed_again_in_the_backward_pass_is_judged(tmp_path: Path) -> None:
    from torch import nn
    from torch.utils.checkpoint import checkpoint

    def body_of(wrong: bool) -> Any:
        part = module(
            lambda m, x: m.two(m.act(m.one(x))), one=nn.Conv2d(8, 8, 1), act=nn.ReLU(), two=nn.Conv2d(8, 8, 1)
        )
        if wrong:
            part.act = nn.LeakyReLU(0.1)

        def outer(m: Any, x: Any) -> Any:
            return checkpoint(m.part, x, use_reentrant=False) if m.training and not wrong else m.part(x)

        return module(outer, part=part)

    report = judged(network(body_of(False)), network(body_of(True)), tmp_path)
    assert blamed(report).path == "body.part.act", report.first
