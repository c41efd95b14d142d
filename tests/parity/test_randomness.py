"""Dropout and randomness of a module's own in two modules that are compared: what is equal is called equal."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from support.backends import FRAMEWORKS
from support.dropping import compared, framework, network
from tlx.proof.result import Verdict

pytestmark = pytest.mark.needs(*FRAMEWORKS)
CANDIDATES = ("torch", "oneflow")
THOROUGH = ("torch", pytest.param("oneflow", marks=pytest.mark.thorough))  # where one framework shows it


def two(fw: Any, first: str = "drop1", second: str = "drop2", p: float = 0.3) -> Any:
    """Two dropouts, under these names."""

    def forward(net: Any, x: Any) -> Any:
        x = getattr(net, first)(fw.relu(net.fc1(net.stem(x).flatten(1))))
        return net.fc(getattr(net, second)(fw.relu(net.fc2(x))))

    return network(fw, forward, **{first: fw.nn.Dropout(p), second: fw.nn.Dropout(p)})


def swapped(fw: Any) -> Any:
    """The same, registered in the other order, behind one that drops nothing."""
    net = two(fw, "late", "early")
    net._modules["idle"] = fw.nn.Dropout(0.0)
    for name in ("late", "early"):
        net._modules[name] = net._modules.pop(name)
    net._modules["late"], net._modules["early"] = net._modules.pop("late"), net._modules.pop("early")
    return net


def one(fw: Any) -> Any:
    """One dropout, called twice."""
    return two(fw, "drop2", "drop2")


def functions(fw: Any) -> Any:
    """The functions, in the forward pass."""

    def forward(net: Any, x: Any) -> Any:
        drop = fw.nn.functional.dropout
        x = drop(fw.relu(net.fc1(net.stem(x).flatten(1))), 0.3, net.training)
        return net.fc(drop(fw.relu(net.fc2(x)), p=0.3, training=net.training))

    return network(fw, forward)


def subclassed(fw: Any) -> Any:
    """A dropout of the user's own class, which the framework's own computes."""

    class Thinning(fw.nn.Dropout):  # type: ignore[misc]
        pass

    class Drop(Thinning):
        pass

    return renewed(two(fw, "thin", "drop2"), thin=Thinning(0.3), drop2=Drop(0.3))


def renewed(net: Any, **layers: Any) -> Any:
    for name, layer in layers.items():
        setattr(net, name, layer)
    return net


def nested(fw: Any) -> Any:
    """Each beside its layer in a Sequential of its own, so that it acts in the head's phase no more than that does."""

    def forward(net: Any, x: Any) -> Any:
        x = net.drops[1](fw.relu(net.fc1(net.stem(x).flatten(1))))
        return net.fc(net.drops[4](fw.relu(net.fc2(x))))

    layers = [fw.nn.Dropout(0.0), fw.nn.Dropout(0.3), fw.nn.Identity(), fw.nn.Dropout(0.5), fw.nn.Dropout(0.3)]
    return network(fw, forward, drops=fw.nn.Sequential(*layers))


@pytest.mark.parametrize("candidate", CANDIDATES)
@pytest.mark.parametrize("port", [swapped, one, functions, subclassed, nested])
def test_a_dropout_that_is_written_otherwise_is_equal(port: Callable[[Any], Any], candidate: str) -> None:
    report = compared(two(framework("torch")), port(framework(candidate)))
    assert report.verdict == Verdict.EQUAL, str(report)


def saving(names: tuple[str, str]) -> Any:
    """Both parts are computed again in the backward pass, as gradient checkpointing does."""
    from torch.utils.checkpoint import checkpoint

    fw = framework("torch")

    def forward(net: Any, x: Any) -> Any:
        first, second = (getattr(net, name) for name in names)
        x = net.stem(x).flatten(1)
        x = checkpoint(lambda x: first(fw.relu(net.fc1(x))), x, use_reentrant=False)
        return net.fc(checkpoint(lambda x: second(fw.relu(net.fc2(x))), x, use_reentrant=False))

    return network(fw, forward, **{name: fw.nn.Dropout(0.3) for name in names})


@pytest.mark.parametrize("names", [("drop1", "drop2"), ("drop", "drop")])
def test_gradient_checkpointing_draws_the_same_masks_again(names: tuple[str, str]) -> None:
    report = compared(saving(names), two(framework("oneflow")))
    assert report.verdict == Verdict.EQUAL, str(report)


def inside(fw: Any) -> Any:
    """The first beside its layer in a block, which is frozen in the head's phase, and the second in the root."""

    class Block(fw.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.drop = fw.nn.Linear(96, 24), fw.nn.Dropout(0.3)

        def forward(self, x: Any) -> Any:
            return self.drop(fw.relu(self.fc1(x)))

    def forward(net: Any, x: Any) -> Any:
        return net.fc(fw.nn.functional.dropout(fw.relu(net.fc2(net.body(net.stem(x).flatten(1)))), 0.3, net.training))

    net = network(fw, forward, body=Block())
    del net.fc1
    for name in ("body", "fc2", "fc"):  # where `two` has its layers
        net._modules[name] = net._modules.pop(name)
    return net


@pytest.mark.parametrize("candidate", CANDIDATES)
def test_a_dropout_acts_in_each_phase_where_that_of_the_reference_does(candidate: str) -> None:
    report = compared(inside(framework("torch")), two(framework(candidate)), rename={"body.fc1": "fc1"})
    assert report.verdict == Verdict.EQUAL, str(report)
    report = compared(two(framework("torch")), inside(framework(candidate)), rename={"fc1": "body.fc1"})
    assert report.verdict == Verdict.EQUAL, str(report)


def beside(fw: Any, name: str, late: bool) -> Any:
    """A channel dropout in one of two branches, drawn before the other branch is computed or after."""

    def forward(net: Any, x: Any) -> Any:
        x = net.stem(x)
        left = net.left(x)
        right = net.right(x) if late else None
        left = getattr(net, name)(left)
        x = left + (net.right(x) if right is None else right)
        return net.fc(fw.relu(net.fc2(fw.relu(net.fc1(x.flatten(1))))))

    branches = {branch: fw.nn.Conv2d(6, 6, 3, padding=1) for branch in ("left", "right")}
    return network(fw, forward, **{name: fw.nn.Dropout2d(0.3)}, **branches)


def test_a_match_by_order_alone_is_stated() -> None:
    report = compared(beside(framework("torch"), "drop", False), beside(framework("oneflow"), "spatial", True))
    assert report.verdict == Verdict.EQUAL and report.notes == (
        "Dropouts matched by their order alone: drop with spatial.",
    )
    assert report.notes[0] in str(report) and report.to_dict()["notes"] == [*report.notes]


def attention(fw: Any, how: str) -> Any:
    """Attention over the 16 places of a map, whose weights are dropped."""
    functional = fw.nn.functional

    def forward(net: Any, x: Any) -> Any:
        tokens = net.stem(x).flatten(2).transpose(1, 2)
        if how == "module":
            tokens = tokens + net.attn(tokens, tokens, tokens, need_weights=False)[0]
        elif how == "module with weights":
            tokens = tokens + net.attn(tokens, tokens, tokens)[0]
        else:
            q, k, v = (fw.matmul(tokens, w.transpose(0, 1)) for w in net.attn.in_proj_weight.chunk(3, 0))
            q, k, v = (t.reshape(t.shape[0], 16, 2, 3).transpose(1, 2) for t in (q, k, v))
            if how == "function":
                p = 0.2 if net.training else 0.0
                mixed = functional.scaled_dot_product_attention(q, k, v, dropout_p=p)
            else:
                scores = fw.softmax(fw.matmul(q, k.transpose(2, 3)) / 3**0.5, dim=-1)
                mixed = fw.matmul(net.attn.drop(scores), v)
            tokens = tokens + net.attn.out_proj(mixed.transpose(1, 2).reshape(tokens.shape[0], 16, 6))
        return net.fc(fw.relu(net.fc2(fw.relu(net.fc1(tokens.transpose(1, 2).flatten(1))))))

    class Attention(fw.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.in_proj_weight = fw.nn.Parameter(fw.randn(18, 6) / 6**0.5)
            self.out_proj = fw.nn.Linear(6, 6)
            self.drop = fw.nn.Dropout(0.2)

    module = how.startswith("module")
    return network(
        fw,
        forward,
        attn=fw.nn.MultiheadAttention(6, 2, dropout=0.2, bias=False, batch_first=True) if module else Attention(),
    )


@pytest.mark.parametrize(
    ("reference", "candidate", "how"),
    [
        ("module", "torch", "by hand"),
        ("module with weights", "torch", "function"),
        ("function", "oneflow", "by hand"),
    ],
)
def test_dropped_attention_is_equal_as_module_as_function_and_by_hand(reference: str, candidate: str, how: str) -> None:
    modules = attention(framework("torch"), reference), attention(framework(candidate), how)
    if reference.startswith("module"):  # which has no bias there
        modules[1].attn.out_proj = framework(candidate).nn.Linear(6, 6, bias=False)
    report = compared(*modules)
    assert report.verdict == Verdict.EQUAL, str(report)


def last(fw: Any, channels_last: bool) -> Any:
    """Units of a map are dropped; the map has its channels last, or second."""

    def forward(net: Any, x: Any) -> Any:
        x = net.stem(x)
        x = net.drop(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if channels_last else net.drop(x)
        return net.fc(fw.relu(net.fc2(fw.relu(net.fc1(x.flatten(1))))))

    return network(fw, forward, drop=fw.nn.Dropout(0.3))


def test_masks_follow_the_order_of_axes() -> None:
    report = compared(last(framework("torch"), False), last(framework("oneflow"), True))
    assert report.verdict == Verdict.EQUAL, str(report)


def faulty(fw: Any, fault: str) -> Any:
    """`two`, with a mistake in how it drops."""

    def forward(net: Any, x: Any) -> Any:
        x = net.fc1(net.stem(x).flatten(1))
        x = net.drop1(fw.relu(x)) if fault != "before" else net.fc2(net.drop2(net.drop1(fw.relu(x))))
        x = fw.relu(x if fault == "before" else net.fc2(x))
        if fault == "always":
            return net.fc(fw.nn.functional.dropout(x, 0.3))
        return net.fc(x if fault in ("missing", "before") else net.drop2(x))

    return network(fw, forward, drop1=fw.nn.Dropout(0.3), drop2=fw.nn.Dropout(0.2 if fault == "p" else 0.3))


FAULTS = {
    "p": "In training drop2 drops 0.3 of 192 parts in the reference and 0.2 of 192 parts in the candidate.",
    "missing": "In training drop2 drops 0.3 of 192 parts in the reference; the candidate has no dropout that fits.",
    "always": "In eval mode the first output that differs is that of fc",
    "before": "first output that differs is that of fc2",
}


@pytest.mark.parametrize("candidate", THOROUGH)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_mistake_in_a_dropout_is_named(fault: str, candidate: str) -> None:
    report = compared(two(framework("torch")), faulty(framework(candidate), fault))
    assert report.verdict == Verdict.DIFFERENT and FAULTS[fault] in report.first, str(report)


def by_itself(fw: Any, how: str) -> Any:
    """Two dropouts that no one can draw for."""
    bare = fw.nn.functional.dropout  # as `from … import dropout` keeps it

    def forward(net: Any, x: Any) -> Any:
        x = fw.relu(net.fc1(net.stem(x).flatten(1)))
        if how == "kept function":
            x = bare(x, 0.3, net.training)
        elif how == "noise":
            x = x * (1 + 0.1 * fw.rand(*x.shape, dtype=x.dtype)) if net.training else x
        elif how == "noise in evaluation":
            x = x * (1 + 0.1 * fw.rand(*x.shape, dtype=x.dtype))
        elif how == "python" and net.training and random.random() < 0.5:
            x = x * 2
        return net.fc(fw.relu(net.fc2(x)))

    return network(fw, forward)


@pytest.mark.parametrize("how", ["kept function", "noise", "noise in evaluation"])
def test_randomness_of_a_module_s_own_is_named_and_shows_nothing(how: str) -> None:
    report = compared(*(by_itself(framework(name), how) for name in CANDIDATES))
    assert report.verdict == Verdict.UNDERPOWERED, str(report)
    modes = ("evaluation", "training") if how == "noise in evaluation" else ("training",)
    for side in ("reference", "candidate"):
        for mode in modes:
            start = f"The {side} draws random numbers of its own in {mode}, first in its outermost code (Net)"
            assert any(text.startswith(start) for text in report.notes), report.notes
    outcomes = {stage.id: stage.passed for stage in report.stages}
    assert outcomes["P3"] is (None if len(modes) == 2 else True) and outcomes["P4"] is None and outcomes["P5"] is True


def test_a_function_that_no_one_can_draw_for_shows_nothing_beside_a_module() -> None:
    report = compared(two(framework("torch")), by_itself(framework("oneflow"), "kept function"))
    assert report.verdict == Verdict.UNDERPOWERED and not report.first, str(report)


def test_a_fault_before_the_first_random_number_is_found() -> None:
    reference, candidate = (by_itself(framework(name), "noise") for name in CANDIDATES)
    candidate.pool = framework("oneflow").nn.AdaptiveMaxPool2d(4)
    report = compared(reference, candidate)
    assert report.verdict == Verdict.DIFFERENT, str(report)
    assert "pool (AdaptiveAvgPool2d, in the candidate AdaptiveMaxPool2d)" in report.first


@pytest.mark.parametrize("how", ["noise", "python"])
def test_the_same_random_numbers_on_both_sides_are_equal(how: str) -> None:
    """On one framework, or from Python, from one seed."""
    candidate = "torch" if how == "noise" else "oneflow"
    report = compared(by_itself(framework("torch"), how), by_itself(framework(candidate), how))
    assert report.verdict == Verdict.EQUAL, str(report)
    assert any("draws random numbers of its own" in text for text in report.notes)
