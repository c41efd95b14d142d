"""Describing a model; loading and dumping its values."""

from __future__ import annotations

import numpy as np
import pytest

from tlx.backend import Array, Backend, ModelSpec, OptimizerSpec, Precision
from tlx.conformance.subject import CLASSES, HEADS, PLAIN, Subject, choose, refused, same_bits


def test_capabilities_name_what_the_backend_can_do(backend: Backend) -> None:
    able = backend.capabilities()
    assert able.devices[0] == "cpu" and set(able.precisions) == set(able.devices)
    assert {"float32", "float64"} <= set(able.precisions["cpu"])
    assert {"sgd", "adam"} <= set(able.optimizers)
    assert able.versions and all(able.versions.values())
    assert able.models


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_specs_describe_what_is_dumped(backend: Backend, precision: Precision) -> None:
    subject = Subject(backend, choose(backend, PLAIN), precision)
    dumped = subject.dump()
    assert [s.name for s in subject.specs] == list(dumped)
    for spec in subject.specs:
        assert (spec.shape, spec.dtype) == (dumped[spec.name].shape, str(dumped[spec.name].dtype))
        assert spec.name.rpartition(".")[0] == spec.module
        assert spec.dtype == ("int64" if spec.name.endswith("num_batches_tracked") else precision)


def test_parameters_come_first_and_have_roles(subject: Subject) -> None:
    roles = [s.role for s in subject.specs]
    assert subject.norms and roles == sorted(roles, key="statistic".__eq__)
    for spec in subject.specs:
        leaf = spec.name.rpartition(".")[2]
        statistic = leaf in ("running_mean", "running_var", "num_batches_tracked")
        role = "statistic" if statistic else "norm" if spec.module in subject.norms else leaf
        assert spec.role == role, spec.name


def test_the_head_is_replaced(subject: Subject, dropper: Subject) -> None:
    for model in (subject, dropper):
        shapes = {s.name: s.shape for s in model.specs if s.name in model.head}
        assert {shape[0] for shape in shapes.values()} == {CLASSES} and len(shapes) == 2
        assert model.logits(model.put(3)).shape == (3, CLASSES)


def test_the_module_is_handed_out(subject: Subject) -> None:
    assert subject.model.module is not None


def test_unknown_model_or_head_is_refused(backend: Backend) -> None:
    name = choose(backend, PLAIN)
    with refused("no-such-model"):
        backend.build(ModelSpec("no-such-model", CLASSES, "fc"), "cpu", "float32")
    with refused("no-such-head"):
        backend.build(ModelSpec(name, CLASSES, "no-such-head"), "cpu", "float32")


def test_two_models_share_nothing(backend: Backend) -> None:
    name = choose(backend, PLAIN)
    one, other = Subject(backend, name), Subject(backend, name)
    one.step(one.optimizer(OptimizerSpec("sgd")), one.put())
    assert same_bits(other.dump(), other.start)
    assert HEADS[name] == one.spec.head


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_values_come_back_bit_for_bit(backend: Backend, precision: Precision) -> None:
    subject = Subject(backend, choose(backend, PLAIN), precision)
    rng = np.random.Generator(np.random.Philox(3))
    arrays = {}
    for spec in subject.specs:
        flat = rng.integers(0, 256, int(np.prod(spec.shape)) * np.dtype(spec.dtype).itemsize, np.uint8)
        flat = flat.view(spec.dtype)
        odd = [-0.0, np.inf, 5e-324 if precision == "float64" else 1e-45, 0.1]
        flat[: min(flat.size, 4)] = odd[: flat.size] if flat.dtype.kind == "f" else 2**40 + 1
        flat[~np.isfinite(flat) & (np.arange(flat.size) > 3)] = 1  # NaNs may lose their payload
        arrays[spec.name] = flat.reshape(spec.shape)
    subject.load(arrays)
    assert same_bits(subject.dump(), arrays)


def test_any_memory_layout_is_loaded(subject: Subject) -> None:
    subject.load({name: np.array(array, order="F") for name, array in subject.start.items()})
    assert same_bits(subject.dump(), subject.start)


def test_load_and_dump_copy(subject: Subject) -> None:
    arrays = {name: array.copy() for name, array in subject.start.items()}
    subject.load(arrays)
    for array in arrays.values():
        array[...] = 3
    first = subject.dump()
    assert same_bits(first, subject.start)
    for array in first.values():
        array[...] = 4
    second = subject.dump()
    assert same_bits(second, subject.start)
    subject.free(batch_norm=subject.norms)
    subject.step(subject.optimizer(OptimizerSpec("sgd")), subject.put())
    assert same_bits(second, subject.start)


@pytest.mark.parametrize("fault", ["missing", "extra", "shape", "dtype", "missing statistic", "0-d becomes 1-d"])
def test_loading_is_strict_and_names_both_sides(subject: Subject, fault: str) -> None:
    arrays: dict[str, Array] = {name: np.asarray(array + 1) for name, array in subject.start.items()}
    weight, mean = subject.head[0], subject.statistics[0]
    mentions = [weight]
    if fault == "missing":
        del arrays[weight]
    elif fault == "missing statistic":
        del arrays[mean]
        mentions = [mean]
    elif fault == "extra":
        arrays["extra.weight"] = np.zeros(3)
        mentions = ["extra.weight"]
    elif fault == "shape":
        mentions += [str(arrays[weight].shape[0]), str(arrays[weight].shape[0] + 1)]
        arrays[weight] = np.concatenate([arrays[weight], arrays[weight][:1]])
    elif fault == "dtype":
        arrays[weight] = arrays[weight].astype(np.float32)
        mentions += ["float32", "float64"]
    else:
        counter = next(name for name in subject.statistics if arrays[name].shape == ())
        arrays[counter] = arrays[counter].reshape(1)
        mentions = [counter]
    with refused(*mentions):
        subject.load(arrays)
    assert same_bits(subject.dump(), subject.start), "a refused load changed the model"
