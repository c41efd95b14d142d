"""The suite of ports is sound by itself, and a sample of it is judged rightly; `make parity-suite` runs all of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.backends import FRAMEWORKS, skip_module_without

skip_module_without(*FRAMEWORKS)

from support.porting import mbconv
from support.porting.case import Case, Net
from support.porting.nets import NETS
from support.porting.outcome import FIELDS, fits, judged, outcome
from support.porting.table import Results, table
from tlx.proof.measure import floor_of, relative
from tlx.proof.pair import pair_of

pytestmark = pytest.mark.needs(*FRAMEWORKS)

ALL = {case.id: (net, case) for net, cases in NETS for case in cases}
SAMPLE = (
    "vit/torch/separate query, key and value",
    "vit/oneflow/norm and GELU by hand",
    "convnext/torch/NCHW and 1x1 convolutions",
    "two/oneflow/plain",
    "vit/torch/attention without its scale",
    "shared/oneflow/second round detached",
    "convnext/oneflow/layer scale along the width",
    "mbconv/torch/gate detached",
    "dense/torch/new features first",
    "unet/oneflow/nearest for bilinear",
    "tokens/torch/loss summed",
)


def test_the_suite_is_as_large_as_it_says() -> None:
    cases = [case for _, cases in NETS for case in cases]
    assert len({case.id for case in cases}) == len(cases)
    assert {case.net for case in cases} == {"vit", "convnext", "mbconv", "shared", "dense", "unet", "two", "tokens"}
    assert sum(case.equal for case in cases) >= 60
    assert sum(not case.equal for case in cases) >= 100
    assert {case.framework for case in cases} == set(FRAMEWORKS)


def is_plain(case: Case, net: Net) -> bool:
    """Whether what it is shows in one pass: nothing is random, and it lies in the network."""
    drops = case.choices.get("rate") or case.choices.get("dropout") or net in (mbconv.DROPS, mbconv.DEEP)
    return not (drops or case.plant or case.loss or case.refused or "recipe's size" in case.name) and case.copies


# A third of them, as the suite itself shows a fault that is none.
PLAIN = [name for name, (net, case) in ALL.items() if is_plain(case, net)][::3]


@pytest.mark.slow
@pytest.mark.parametrize("name", PLAIN)
def test_equal_pairs_compute_the_same_and_faults_do_not(name: str) -> None:
    net, case = ALL[name]
    ours, theirs = passes(net, case)
    floor = floor_of([array for what, array in ours.items() if what.startswith("gradient")])
    errors = {what: relative(ours.get(what), theirs.get(what), floor) for what in ours.keys() | theirs.keys()}
    worst = max(errors, key=lambda what: errors[what])
    assert (errors[worst] < 1e-9) == case.equal, f"{worst}: {errors[worst]:.1e}"


def passes(net: Net, case: Case) -> list[dict[str, Any]]:
    """Outputs in evaluation, loss, gradients and buffers of each side, without a capture."""
    from tlx.backend import registry
    from tlx.backend.protocol import ModelSpec
    from tlx.training import build

    fw: Any = registry.load(case.framework)
    modules = net.reference(), net.port(fw.fw, **case.choices)
    if case.prepare is not None:
        case.prepare(*modules)
    fields = {**FIELDS, **net.fields, **case.fields}
    batch = None if net.batch is None else net.batch()
    pair = pair_of(None, fields, {}, modules, batch, net.loss)
    results: list[dict[str, Any]] = []
    values: dict[str, Any] = {}
    for backend, recipe in pair.sides(dict(net.rename(**case.choices))):
        side: Any = backend
        short = build.resolve_placement(recipe.resolved(), side)
        data = build.open_data(short)
        spec = ModelSpec(short.model_name, len(data.classes), head="", module=short.model)
        model = side.build(spec, "cpu", "float64")
        values = values or side.dump_arrays(model)
        dtypes = {s.name: s.dtype for s in side.param_specs(model)}
        side.load_arrays(model, {n: np.asarray(a, dtypes[n]) for n, a in values.items()})
        ready = side.put(model, next(iter(build.make_loader(short, data.train).epoch(0))))
        found: dict[str, Any] = {"evaluation": side.fetch([side.logits(model, ready)])[0]}
        specs = side.param_specs(model)
        statistics = frozenset(s.module for s in specs if s.role == "statistic")
        side.set_phase(model, frozenset(s.name for s in specs if s.role != "statistic"), statistics)
        found["loss"] = side.fetch([*side.backward(model, ready)])[0]
        found |= {f"gradient {n}": a for n, a in side.probe(model).gradients().items()}
        buffers = side.dump_arrays(model)
        found |= {f"buffer {s.name}": buffers[s.name] for s in specs if s.role == "statistic"}
        results.append(found)
    return results


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [*SAMPLE[:6], *(pytest.param(name, marks=pytest.mark.thorough) for name in SAMPLE[6:])]
)
def test_a_pair_is_judged_rightly(name: str) -> None:
    net, case = ALL[name]
    line = outcome(net, case)
    assert judged(case, line) == ("equal" if case.equal else "named"), line


LINE = {"stage": "P3", "names": ["a.b>c"], "first": "the fault lies between a.b and c", "seconds": 1.0}


def test_a_place_is_judged_by_what_was_named() -> None:
    fault, equal = Case(name="x", places=("a.b.fc>c.norm",)), Case(name="y")
    assert judged(fault, {**LINE, "verdict": "different"}) == "named"
    assert judged(fault, {**LINE, "verdict": "different", "names": ["a.bc>c"]}) == "named wrongly"
    assert judged(fault, {**LINE, "verdict": "equal"}) == "missed"
    assert judged(equal, {**LINE, "verdict": "different"}) == "false alarm"
    assert judged(equal, {**LINE, "verdict": "crash"}) == "crash"
    assert judged(Case(name="z", says="between .* and c"), {**LINE, "verdict": "different", "names": []}) == "named"
    assert fits("a", "a") and not fits("", "a") and not fits(">c", "a>c") and fits(">c", ">c.norm")


def test_results_go_on_where_a_process_ended(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.jsonl")
    results.begin("vit/torch/plain")
    results.add({"id": "vit/torch/plain", "verdict": "equal", "stage": "", "names": [], "first": "", "seconds": 1.0})
    results.begin("vit/oneflow/plain")
    assert list(results.done()) == ["vit/torch/plain"]
    results.crashed(-6, ["vit/torch/plain", "vit/oneflow/plain"])
    assert results.done()["vit/oneflow/plain"]["first"] == "the process ended with -6"
    page = table([ALL[name][1] for name in results.done()], results.done())
    assert "| vit | 2 | 1 | 0 | 0 | 0 | 0 | 0 |" in page
    assert "- `vit/oneflow/plain`: crash. the process ended with -6" in page
