"""The vocabulary of `rename=`: every transform moves numbers there and back, and what cannot fit is one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from support.backends import skip_module_without

skip_module_without("torch")

import torch

from tlx.backend import Hyper, ModelSpec, OptimizerSpec, registry
from tlx.errors import RecipeError
from tlx.proof import mapping
from tlx.proof.mapping import Shape, Target, leaves, put_together, simplified, taken_apart
from tlx.proof.matching import Match, match, rules_of
from tlx.proof.names import names_of
from tlx.proof.rename import Renamed, views

CASES: dict[str, tuple[Target, Shape, dict[str, Shape]]] = {
    "a name": ("w", (3, 4), {"w": (3, 4)}),
    "a transposed matrix": (mapping.transpose("w"), (3, 4), {"w": (4, 3)}),
    "a bias beside it": (mapping.transpose("w"), (3,), {"w": (3,)}),
    "OIHW as HWIO": (mapping.transpose("w", (2, 3, 1, 0)), (5, 2, 3, 4), {"w": (3, 4, 2, 5)}),
    "axes for other arrays": (mapping.transpose("w", (2, 3, 1, 0)), (5, 2), {"w": (5, 2)}),
    "a pointwise convolution": (mapping.reshape("w"), (5, 2, 1, 1), {"w": (5, 2)}),
    "a shape that is said": (mapping.reshape(mapping.transpose("w"), (5, -1)), (5, 2, 3), {"w": (6, 5)}),
    "parts side by side": (mapping.split("q", "k", "v"), (6, 4), {"q": (3, 4), "k": (2, 4), "v": (1, 4)}),
    "parts along the last axis": (mapping.split("q", "k", axis=-1), (4, 6), {"q": (4, 4), "k": (4, 2)}),
    "parts that are transposed": (
        mapping.split(mapping.transpose("q"), mapping.transpose("k")),
        (6, 5),
        {"q": (5, 4), "k": (5, 2)},
    ),
    "query, key and value of each head in turn": (
        mapping.reshape(mapping.split(*(mapping.reshape(n) for n in "qkv"), axis=1), (2, 3, 4, -1)),
        (24, 8),
        {name: (8, 8) for name in "qkv"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_numbers_come_back_where_they_were(case: str) -> None:
    target, shape, shapes = CASES[case]
    array = np.random.default_rng(0).normal(size=shape)
    parts = taken_apart(target, array, shapes)
    assert {name: part.shape for name, part in parts.items()} == shapes and list(parts) == list(leaves(target))
    assert sorted(np.concatenate([p.ravel() for p in parts.values()])) == sorted(array.ravel())
    back = put_together(target, parts, shape, shapes)
    assert back.shape == shape and back.tobytes() == array.tobytes()
    plain = taken_apart(simplified(target, shape, shapes), array, shapes)
    assert all(np.array_equal(plain[name], part) for name, part in parts.items())


def test_heads_in_turn_are_what_attention_cuts() -> None:
    target, shape, shapes = CASES["query, key and value of each head in turn"]
    array = np.arange(24 * 8.0).reshape(shape)
    parts = taken_apart(target, array, shapes)
    heads = array.reshape(2, 3, 4, 8)
    for place, name in enumerate("qkv"):
        assert np.array_equal(parts[name], heads[:, place].reshape(8, 8))


@pytest.mark.parametrize(
    "written",
    [
        "mapping.transpose('dense')",
        "mapping.transpose('conv', (2, 3, 1, 0))",
        "mapping.split('q', mapping.transpose('k'), axis=-1)",
        "mapping.concat('qkv')",
        "mapping.layout(mapping.reshape('w', (4, -1)), (0, 2, 3, 1))",
    ],
)
def test_a_transform_is_written_as_it_is_made(written: str) -> None:
    assert repr(eval(written, {"mapping": mapping})) == written


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mapping.transpose(5), "mapping.transpose: a target is 5; expected a path"),  # type: ignore[arg-type]
        (lambda: mapping.transpose("x", (0, 0)), "axes is (0, 0); expected a permutation such as (0, 2, 3, 1)"),
        (lambda: mapping.layout("x", "NHWC"), "axes is 'NHWC'; expected a permutation"),  # type: ignore[arg-type]
        (lambda: mapping.reshape("x", (-1, -1)), "the shape is (-1, -1); expected sizes"),
        (lambda: mapping.split("q"), "mapping.split has 1 targets; expected two or more"),
        (lambda: mapping.split("q", "k", axis="x"), "mapping.split: axis is 'x'"),  # type: ignore[arg-type]
        (lambda: mapping.transpose(mapping.concat("x")), "concat comes first, as concat(transpose(...))"),
    ],
)
def test_a_transform_that_cannot_be_is_refused(make: Any, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        make()
    assert message in str(error.value)


class Net(torch.nn.Module):
    """Some arrays by name; those of a block twice."""

    def __init__(self, **shapes: Shape) -> None:
        super().__init__()
        for name, shape in shapes.items():
            *path, last = name.split("__")
            owner: torch.nn.Module = self
            for part in path:
                if part not in owner._modules:
                    owner.add_module(part, torch.nn.Module())
                owner = owner._modules[part]  # type: ignore[assignment]
            value = torch.randn(*shape)
            if last.startswith("buffer"):
                owner.register_buffer(last, value)
            else:
                owner.register_parameter(last, torch.nn.Parameter(value))


OURS = {
    "blocks__0__attn__weight": (6, 4),
    "blocks__0__attn__bias": (6,),
    "blocks__1__attn__weight": (6, 4),
    "blocks__1__attn__bias": (6,),
    "head__weight": (2, 4),
    "buffer": (3,),
}
THEIRS = {name.replace("blocks", "layers").replace("attn", "self_attn"): shape for name, shape in OURS.items()}
RENAME: dict[Any, Any] = {"blocks.*.attn": "layers.*.self_attn"}


def matched(rename: Any, ours: Mapping[str, Shape] = OURS, theirs: Mapping[str, Shape] = THEIRS) -> Match:
    backend = registry.load("torch")
    return match(names_of(backend, Net(**ours), "reference"), names_of(backend, Net(**theirs), "candidate"), rename)


def pairs(found: Match) -> dict[str, Any]:
    return {pair.spec.name: pair.candidate for pair in found.pairs}


def test_stars_keep_their_order_and_modules_follow() -> None:
    found = matched(RENAME)
    assert pairs(found)["blocks.1.attn.bias"] == "layers.1.self_attn.bias" and not found.missing + found.extra
    assert found.modules["blocks.1.attn"] == "layers.1.self_attn" and found.modules["blocks"] == "layers"
    theirs = {name.replace("layers__", "layer_").replace("0", "7"): shape for name, shape in THEIRS.items()}
    ours = {name.replace("0", "7"): shape for name, shape in OURS.items()}
    assert not matched({"blocks.*": "layer_*", "blocks.*.attn": "layer_*.self_attn"}, ours, theirs).missing


def test_the_closest_rule_wins() -> None:
    theirs = {**THEIRS, "layers__1__own__weight": (6, 4)}
    del theirs["layers__1__self_attn__weight"]
    rename = {"blocks": "layers", **RENAME, "blocks.1.attn.weight": "layers.1.own.weight"}
    assert pairs(matched(rename, OURS, theirs)) == {
        **{name: name.replace("blocks", "layers").replace("attn", "self_attn") for name in pairs(matched(RENAME))},
        "blocks.1.attn.weight": "layers.1.own.weight",
    }


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        ([], "rename is []; expected a dictionary"),
        ({1: "head"}, "rename: 1 is no path"),
        ({"head": 5}, "rename: 'head' becomes 5; expected a path, a transform"),
        ({(): "head"}, "rename: () names nothing"),
        ({"blocks.**": "layers"}, "'blocks.**' has **"),
        ({"blocks.*": "layers"}, "'blocks.*' and 'layers' have different numbers of *"),
        ({"blocks.*.atn": "layers.*.self_attn"}, "the reference has no 'blocks.*.atn'. Did you mean 'blocks.*.attn'"),
        (
            {"blocks.*.attn": "layers.*.attn"},
            "has no 'layers.0.attn' for 'blocks.0.attn'. Did you mean 'layers.0.self_attn'",
        ),
        ({**RENAME, "block*.0.attn": "layer*.0.self_attn"}, "'block*.0.attn' both match 'blocks.0.attn'"),
        ({**RENAME, "head": "layers.0.self_attn"}, "'head.weight' both become 'layers.0.self_attn.weight'"),
        ({**RENAME, None: "head"}, "{None: 'head'} leaves out 'head.weight', which 'head.weight' becomes"),
        ({**RENAME, None: "nothing"}, "the candidate has no 'nothing'"),
        ({**RENAME, "head": mapping.transpose("head")}, "it comes out as [4, 2], but 'head.weight' is [2, 4]"),
        ({**RENAME, "head": mapping.reshape("head", (3, 3))}, "which changes none of its arrays"),
        ({**RENAME, "head.weight": ("head.weight", "buffer")}, "in the candidate 'buffer' is a buffer"),
        ({**RENAME, "head": ("head", "layers.0.self_attn"), "blocks.0.attn": None}, "cannot be cut along axis 0"),
        ({**RENAME, "head": mapping.concat("head")}, "needs several names, as {('q', 'k', 'v')"),
        ({("head.weight", "buffer"): "head.weight"}, "[2, 4] and [3] of 'head.weight' … cannot be joined along axis 0"),
    ],
)
def test_a_rule_that_cannot_be_is_refused(rename: Any, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        matched(rename)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_what_one_side_alone_has_is_left_out() -> None:
    theirs = {**THEIRS, "scale": (4,)}
    del theirs["buffer"]
    found = matched({**RENAME, "buffer": None, None: "scale"}, OURS, theirs)
    assert not found.missing + found.extra and "buffer" not in pairs(found)
    assert matched(RENAME, OURS, theirs).extra == ["scale"] and matched(RENAME, OURS, theirs).missing == ["buffer"]


def test_a_buffer_is_no_partner_of_a_parameter() -> None:
    theirs = {**{n: s for n, s in OURS.items() if n != "head__weight"}, "head__buffer": (2, 4)}
    with pytest.raises(RecipeError, match=r"'head\.weight' is a parameter, but in the candidate 'head\.buffer'"):
        matched({"head.weight": "head.buffer"}, OURS, theirs)


def test_rules_are_read_once() -> None:
    rules, alone = rules_of({("q", "k"): "qk", "a": ("b", "c"), None: ("x", "y")})
    assert [repr(rule.to) for rule in rules] == ["mapping.concat('qk')", "mapping.split('b', 'c')"]
    assert alone == ("x", "y")


MERGED = {"qkv__weight": (6, 4), "qkv__bias": (6,), "out__weight": (4, 2), "out__bias": (4,)}
APART = {
    **{f"{name}__weight": (2, 4) for name in "qkv"},
    **{f"{name}__bias": (2,) for name in "qkv"},
    "o__kernel": (2, 4),
    "o__bias": (4,),
    "constant": (3,),
}


def sides() -> tuple[list[Renamed], list[Any]]:
    """The two modules behind views: one array of three, and a weight turned round."""
    backend = registry.load("torch")
    modules = [Net(**MERGED), Net(**APART)]
    ours, theirs = names_of(backend, modules[0], "reference"), names_of(backend, modules[1], "candidate")
    rename: dict[Any, Any] = {"qkv": ("q", "k", "v"), "out": "o", "out.weight": mapping.transpose("o.kernel")}
    both = views(match(ours, theirs, {**rename, None: "constant"}), ours, theirs)
    return [Renamed(backend, view) for view in both], modules


def test_a_backend_behind_a_view_takes_and_gives_what_both_share() -> None:
    """Values, gradients, groups and the state of Adam; what the side alone has neither moves nor shows."""
    both, modules = sides()
    models = [s.build(ModelSpec("net", 2, "", module=m), "cpu", "float64") for s, m in zip(both, modules, strict=True)]
    specs = both[0].param_specs(models[0])
    names = [spec.name for spec in specs]
    assert specs == both[1].param_specs(models[1]) and names == [name.replace("__", ".") for name in MERGED]
    values = both[0].dump_arrays(models[0])
    both[1].load_arrays(models[1], values)
    own = both[1].inner.dump_arrays(models[1])
    assert np.array_equal(own["o.kernel"], values["out.weight"].T)
    ends = []
    for side, model in zip(both, models, strict=True):
        handle = side.optimizer(model, OptimizerSpec("adam"), [tuple(names)])
        side.set_phase(model, frozenset(names), frozenset())
        side.set_hyper(handle, [Hyper(0.125, 0.25)])
        probe = side.probe(model)
        for step in range(2):
            drawn = np.random.default_rng(step)
            gradients = {spec.name: drawn.normal(size=spec.shape) for spec in specs}
            probe.set_gradients(gradients)
            read = probe.gradients()
            assert all(np.array_equal(read[name], gradient) for name, gradient in gradients.items())
            side.update(model, handle)
        state = side.dump_optimizer(handle)
        side.load_optimizer(handle, state)
        assert all(np.array_equal(side.dump_optimizer(handle)[key], array) for key, array in state.items())
        ends.append({**side.dump_arrays(model), **state})
    assert ends[0].keys() == ends[1].keys() and ends[0]["qkv.weight/step"] == 2
    assert all(np.array_equal(array, ends[1][name]) for name, array in ends[0].items())
    after = both[1].inner.dump_arrays(models[1])
    assert np.array_equal(after["constant"], own["constant"]) and not np.array_equal(after["q.bias"], own["q.bias"])


def test_parts_whose_counts_differ_have_no_count_in_common() -> None:
    side = sides()[0][1]
    (bias,) = (spec for spec in side.view.specs if spec.name == "qkv.bias")
    counts = {f"{name}.bias": np.array(2.0 if name != "k" else 1.0) for name in "qkv"}
    assert np.isnan(side._slot_out(bias, counts)).all()
    assert side._slot_out(bias, dict.fromkeys(counts, np.array(2.0))) == 2
