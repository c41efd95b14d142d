"""The culprit is named: the module that differs by itself, or the stretch of code between two that do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support.backends import FRAMEWORKS
from support.judged import judged
from support.nets import Nets
from tlx.proof.report import Report
from tlx.proof.result import Alone, Between, Outside, Verdict

torch_alone = pytest.mark.needs("torch")
both = pytest.mark.needs(*FRAMEWORKS)


def planted(net: str, fault: str, home: Path, candidate: str = "torch") -> Report:
    """Compare a network with one that has a fault, which must be found."""
    report = judged(getattr(Nets("torch"), net)(), getattr(Nets(candidate), net)(fault), home)
    assert report.verdict == Verdict.DIFFERENT, str(report)
    return report


def blamed(report: Report) -> Any:
    """Return what is blamed."""
    assert report.difference is not None
    return report.difference.replay


MODULES = [
    ("vit", "activation", "P3", "blocks.1.mlp.act", "output"),
    ("shared", "elsewhere", "P3", "last", "output"),
    ("conv", "stride", "P3", "pool", "output"),
    ("conv", "align_corners", "P3", "up", "output"),
    ("conv", "eval", "P3", "block.norm", "output"),
    ("branches", "join", "P3", "join", "output 2"),
]


@torch_alone
@pytest.mark.parametrize(("net", "fault", "stage", "path", "quantity"), MODULES)
def test_a_module_that_differs_by_itself_is_named(
    net: str, fault: str, stage: str, path: str, quantity: str, tmp_path: Path
) -> None:
    report = planted(net, fault, tmp_path)
    alone = blamed(report)
    assert isinstance(alone, Alone), report.first
    assert report.difference is not None and report.difference.stage.id == stage
    assert (alone.path, alone.quantity, alone.others, alone.replay) == (path, quantity, 0, "different"), report.first


STRETCHES = [
    ("vit", "scale", "P3", ("blocks.0.attn.qkv", "blocks.0.attn.proj", "blocks.0.attn")),
    ("vit", "residual", "P3", ("blocks.0.attn", "blocks.0.norm2", "blocks.0")),
    ("vit", "layer scale", "P3", ("blocks.0.mlp", "blocks.0", "blocks.0")),
    ("vit", "position", "P3", ("patch", "blocks.0", "")),
    ("vit", "pooling", "P3", ("norm", "fc", "")),
    ("vit", "detach", "P4", ("", "", "")),
    ("shared", "second call", "P3", ("act", "mix#2", "")),
    ("shared", "detach", "P4", ("tied", "mix#3", "")),
    ("conv", "in place", "P3", ("block.norm", "block", "block")),
    ("conv", "no residual", "P3", ("block.norm", "block", "block")),
    ("conv", "eval only", "P3", ("block.norm", "block", "block")),
    ("conv", "training only", "P4", ("block.norm", "block", "block")),
    ("branches", "left", "P3", ("embed", "join", "")),
    ("branches", "swapped", "P3", ("embed", "join", "")),
    ("branches", "code", "P3", ("right", "embed", "")),
    ("branches", "entry", "P3", ("join", "fc", "")),
]


@torch_alone
@pytest.mark.parametrize(("net", "fault", "stage", "stretch"), STRETCHES)
def test_a_fault_between_two_modules_is_named_by_them(
    net: str, fault: str, stage: str, stretch: tuple[str, str, str], tmp_path: Path
) -> None:
    report = planted(net, fault, tmp_path)
    between = blamed(report)
    assert isinstance(between, Between), report.first
    assert report.difference is not None and report.difference.stage.id == stage
    assert (between.previous, between.path, between.within) == stretch, report.first
    assert between.swapped == (fault == "swapped")


@both
@pytest.mark.parametrize(
    ("net", "fault", "named"),
    [
        ("vit", "activation", "blocks.1.mlp.act (GELU, in the candidate SiLU)"),
        ("vit", "layer scale", "between blocks.0.mlp and what blocks.0 returns, in the code of blocks.0 itself"),
        ("shared", "second call", "between act and mix#2"),
        ("conv", "in place", "between block.norm and what block returns"),
        ("branches", "swapped", "the inputs of join are swapped"),
    ],
)
def test_a_fault_in_a_port_to_another_framework_is_named(net: str, fault: str, named: str, tmp_path: Path) -> None:
    report = planted(net, fault, tmp_path, "oneflow")
    assert named in report.first


@both
@pytest.mark.parametrize("net", ["vit", "shared", "conv", "branches"])
def test_a_port_to_another_framework_is_equal(net: str, tmp_path: Path) -> None:
    report = judged(getattr(Nets("torch"), net)(), getattr(Nets("oneflow"), net)(), tmp_path)
    assert report.verdict == Verdict.EQUAL, str(report)
    assert all(stage.facts["sizes"] == [16, 29] for stage in report.stages if stage.id in ("P3", "P4"))
    assert all(not stage.facts["not_replayed"] for stage in report.stages if stage.id in ("P3", "P4"))


@both
def test_modules_that_change_their_input_in_place_are_equal_in_both_directions(tmp_path: Path) -> None:
    one, other = Nets("oneflow").conv(), Nets("torch").conv(style="in place")
    report = judged(one, other, tmp_path / "there")
    assert report.verdict == Verdict.EQUAL, str(report)
    report = judged(other, Nets("oneflow").conv("training only", style="in place"), tmp_path / "back")
    assert "between block.norm and what block returns, in the code of block itself" in report.first


@torch_alone
@pytest.mark.parametrize(
    ("net", "style"),
    [("conv", "order"), ("conv", "functional"), ("conv", "padding"), ("conv", "in place"), ("branches", "order")],
)
def test_another_way_to_write_the_same_is_equal(net: str, style: str, tmp_path: Path) -> None:
    build = getattr(Nets("torch"), net)
    report = judged(build(), build(style=style), tmp_path)
    assert report.verdict == Verdict.EQUAL, str(report)
    report = judged(build(), build(fault="no residual" if net == "conv" else "left", style=style), tmp_path / "fault")
    assert isinstance(blamed(report), Between), report.first
    assert blamed(report).within == ("block" if net == "conv" else ""), report.first


@torch_alone
def test_a_difference_at_an_odd_size_alone_is_found(tmp_path: Path) -> None:
    report = planted("conv", "odd size", tmp_path)
    assert report.difference is not None and report.difference.row is not None
    assert report.difference.row.size == 29 and "at 29 px" in report.first
    assert (blamed(report).previous, blamed(report).path) == ("up", "fc")


@torch_alone
def test_the_gradient_that_enters_from_the_loss_is_told_from_the_model_s(tmp_path: Path) -> None:
    from tlx.backend import registry
    from tlx.proof.capture import capture
    from tlx.proof.compare import compare
    from tlx.proof.faults import SummedLoss
    from tlx.proof.pair import drawn_images
    from tlx.recipe import Recipe

    stages = ("P1", "P3", "P4")
    recipe = Recipe(model=Nets("torch").conv(), weights="own", head="fc", data=drawn_images(5, 16), image_size=16)
    capture(recipe, "torch", tmp_path / "a", quick=True, stages=stages)
    capture(recipe, SummedLoss(registry.load("torch")), tmp_path / "b", tmp_path / "a", quick=True, stages=stages)
    assert blamed(compare(tmp_path / "a", tmp_path / "b")) == Outside("loss gradient")


def two_branches(by_hand: bool) -> Any:
    """Scales a convolution by a layer of the image's mean, which one of them computes by hand, and without its bias."""
    import torch

    class TwoBranches(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.measure, self.conv = torch.nn.Linear(3, 4), torch.nn.Conv2d(3, 4, 3)
            self.scale, self.fc = torch.nn.Linear(4, 4), torch.nn.Linear(4, 5)

        def forward(self, x: Any) -> Any:
            mean = x.mean((2, 3))
            measured = mean @ self.measure.weight.T if by_hand else self.measure(mean)
            maps = self.conv(x).mean((2, 3))
            return self.fc(maps * self.scale(measured))

    return TwoBranches()


@torch_alone
def test_another_branch_that_ran_in_between_bounds_no_stretch(tmp_path: Path) -> None:
    between = blamed(judged(two_branches(by_hand=False), two_branches(by_hand=True), tmp_path))
    assert isinstance(between, Between)
    assert (between.previous, between.path, between.reference) == ("", "scale", (("measure", "Linear"),))


def rounds(by_hand: bool) -> Any:
    """Takes one layer three times, with functions in between; one of them turns around what leaves the second round."""
    import torch

    class Rounds(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.start, self.mix, self.fc = torch.nn.Linear(3, 4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 5)
            if not by_hand:
                self.act = torch.nn.Tanh()

        def forward(self, x: Any) -> Any:
            x = self.start(x.mean((2, 3)))
            for number in range(3):
                y = torch.tanh(self.mix(x)) if by_hand else self.act(self.mix(x))
                x = x + (y.flip(1) if by_hand and number == 1 else y)
            return self.fc(x)

    return Rounds()


@torch_alone
def test_a_way_that_is_lost_among_functions_begins_at_the_call_before(tmp_path: Path) -> None:
    between = blamed(judged(rounds(by_hand=False), rounds(by_hand=True), tmp_path))
    assert isinstance(between, Between) and (between.previous, between.path) == ("mix#2", "mix#3")
