"""Losses, gradients and updates, against the NumPy reference and finite differences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest

from tlx.backend import Array, Batch, Hyper, OptimizerSpec
from tlx.backend.optimizers import RULES
from tlx.conformance import reference
from tlx.conformance.subject import (
    CLASSES,
    N,
    Subject,
    apply,
    assert_near,
    batch,
    exact,
    refused,
    same_bits,
    several_labels,
    soft_targets,
)


def _specs() -> Iterator[tuple[str, OptimizerSpec]]:
    """Every rule as it is, then once for each further way in which its scalars let it move."""
    for name, rule in RULES.items():
        # A large eps shows where it stands, and bounds how far rounding of a tiny gradient can move a parameter.
        plain = OptimizerSpec(name, eps=exact(1e-4)) if "eps" in rule.scalars else OptimizerSpec(name)
        yield name, plain
        if "momentum" in rule.scalars:
            yield f"{name} with momentum", replace(plain, momentum=exact(0.9))
        if "nesterov" in rule.scalars:
            yield f"{name} with nesterov", replace(plain, momentum=exact(0.9), nesterov=True)


def _keeps_slots(spec: OptimizerSpec) -> bool:
    zero = np.zeros(1)
    return bool(apply(spec, Hyper(0.0, 0.0), zero, zero, {})[1])


SPECS = dict(_specs())
_STATEFUL = {name: spec for name, spec in SPECS.items() if _keeps_slots(spec)}
any_optimizer = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
stateful = pytest.mark.parametrize("spec", _STATEFUL.values(), ids=_STATEFUL.keys())


@pytest.mark.parametrize("soft", [False, True], ids=["labels", "targets"])
def test_the_loss_is_cross_entropy_summed_over_the_samples(subject: Subject, soft: bool) -> None:
    for n in (1, 3):
        targets = soft_targets(n) if soft else None
        whole = batch(n, targets=targets)
        handle = subject.backend.put(subject.model, whole)
        logits = subject.logits(handle)
        assert logits.shape == (n, CLASSES)
        expected = reference.cross_entropy(logits, whole.labels, targets)[0] * n
        total, correct = subject.evaluate(handle)
        assert total == pytest.approx(expected, rel=1e-12)
        assert correct == int((logits.argmax(axis=1) == whole.labels).sum())
        trained, counted = subject.backward(handle)
        assert trained == pytest.approx(expected, rel=1e-12) and counted == correct


@pytest.mark.parametrize("soft", [False, True], ids=["labels", "targets"])
def test_the_loss_of_several_labels_is_the_mean_of_binary_cross_entropies(subject: Subject, soft: bool) -> None:
    """The mean over the classes, summed over the samples; logits that are far from 0 cost no digits."""
    subject.check_several()
    for n, factor in ((1, 1.0), (3, 1000.0)):
        targets = soft_targets(n) if soft else None
        whole = batch(n, labels=several_labels(n), targets=targets)
        subject.load({k: a * factor if k in subject.head else a for k, a in subject.start.items()})
        handle = subject.backend.put(subject.model, whole)
        logits = subject.logits(handle)
        expected = reference.binary_cross_entropy(logits, whole.labels, targets)[0] * n
        total, correct = subject.evaluate(handle)
        assert total == pytest.approx(expected, rel=1e-12)
        assert correct == int(((logits > 0) == whole.labels).all(axis=1).sum())
        trained, counted = subject.backward(handle)
        assert trained == pytest.approx(expected, rel=1e-12) and counted == correct


def test_a_sample_of_several_labels_is_correct_where_all_of_them_are(subject: Subject) -> None:
    subject.check_several()
    predicted = (subject.logits(subject.put()) > 0).astype(np.int64)
    for wrong in range(N + 1):
        labels = predicted.copy()
        labels[:wrong, wrong % CLASSES] ^= 1
        handle = subject.put(labels=labels)
        assert subject.evaluate(handle)[1] == N - wrong == subject.backward(handle)[1]


def test_gradients_of_several_labels_are_sigmoid_less_target(subject: Subject) -> None:
    """Of the head's bias, which adds to every logit alike: the sum over the samples, by samples and classes."""
    subject.check_several()
    for targets in (None, soft_targets()):
        whole = batch(labels=several_labels(), targets=targets)
        handle = subject.backend.put(subject.model, whole)
        _, slopes = reference.binary_cross_entropy(subject.logits(handle), whole.labels, targets)
        bias = next(name for name in subject.head if name.endswith("bias"))
        assert_near({bias: subject.gradients(handle)[bias]}, {bias: slopes.sum(axis=0)})


def test_correct_counts_right_answers(subject: Subject) -> None:
    predicted = subject.logits(subject.put()).argmax(axis=1)
    for wrong in range(N + 1):
        labels = np.where(np.arange(N) < wrong, (predicted + 1) % CLASSES, predicted).astype(np.int64)
        handle = subject.put(labels=labels)
        assert subject.evaluate(handle)[1] == N - wrong == subject.backward(handle)[1]


@pytest.mark.parametrize("soft", [False, True], ids=["labels", "targets"])
@pytest.mark.parametrize("adapting", [False, True], ids=["kept", "batch"])
def test_gradients_are_the_slopes_of_the_mean_loss(subject: Subject, adapting: bool, soft: bool) -> None:
    """Along two directions, by central differences of the training loss."""
    subject.free(batch_norm=subject.norms if adapting else ())
    handle = subject.put(targets=soft_targets() if soft else None)
    gradients = subject.gradients(handle)
    for seed in (0, 1):
        rng = np.random.Generator(np.random.Philox(seed))
        way = {name: rng.normal(size=subject.start[name].shape) for name in subject.params}
        h, ends = 1e-9, []  # small, so that few of ResNet's units cross the bend of their ReLU
        for sign in (1, -1):
            subject.load({**subject.start, **{n: subject.start[n] + sign * h * way[n] for n in way}})
            ends.append(subject.backward(handle)[0] / N)
        expected = sum(float((gradients[name] * way[name]).sum()) for name in way)
        assert (ends[0] - ends[1]) / (2 * h) == pytest.approx(expected, rel=1e-4)
        subject.free(batch_norm=subject.norms if adapting else ())  # drop the gradients of the two probes


def test_scale_weighs_gradients_but_not_the_loss(subject: Subject) -> None:
    handle = subject.put()
    plain, gradients = subject.backward(handle), subject.probe()
    scaled = subject.backward(handle, scale=0.25)
    assert scaled == plain
    assert_near(subject.probe(), {name: 0.25 * g for name, g in gradients.items()}, 1e-12)


@pytest.mark.parametrize("size", [2, 3])
def test_accumulated_parts_equal_the_whole_batch(subject: Subject, dropper: Subject, size: int) -> None:
    """Whatever the parts' sizes, with targets, and with the same units dropped."""
    for model in (subject, dropper):
        _check_parts(model, batch(targets=soft_targets()), size)


@pytest.mark.parametrize("size", [2, 3])
def test_accumulated_parts_of_several_labels_equal_the_whole_batch(subject: Subject, size: int) -> None:
    subject.check_several()
    _check_parts(subject, batch(labels=several_labels(), targets=soft_targets()), size)


def _check_parts(model: Subject, whole: Batch, size: int) -> None:
    expected = model.gradients(model.backend.put(model.model, whole))
    for piece in whole.parts(size):
        model.backward(model.backend.put(model.model, piece), scale=len(piece) / N)
    assert_near(model.probe(), expected, 1e-11)


def test_backward_alone_moves_nothing(subject: Subject) -> None:
    subject.backward(subject.put())
    assert same_bits(subject.dump(), subject.start)


@stateful
def test_update_uses_the_gradients_up(subject: Subject, spec: OptimizerSpec) -> None:
    """A second update finds None, not zero, so neither momentum nor decay moves anything."""
    optimizer = subject.optimizer(spec)
    subject.step(optimizer, subject.put())
    before, state = subject.dump(), subject.backend.dump_optimizer(optimizer)
    subject.backend.update(subject.model, optimizer)
    assert same_bits(subject.dump(), before)
    assert same_bits(subject.backend.dump_optimizer(optimizer), state)


@any_optimizer
def test_updates_follow_the_rule_in_numpy(subject: Subject, spec: OptimizerSpec) -> None:
    """Four steps with batch statistics; the two groups differ, and rates and decays change between the steps."""
    subject.free(batch_norm=subject.norms)
    optimizer = subject.optimizer(spec)
    slots: dict[str, dict[str, Array]] = {}
    for step, (lr, decay) in enumerate([(0.01, 0.1), (0.01, 0.1), (0.002, 0.1), (0.005, 0.0)]):
        hyper = [Hyper(exact(lr / 10), exact(decay)), Hyper(exact(lr), exact(decay / 2))]
        subject.backend.set_hyper(optimizer, hyper)
        handle = subject.put(seed=step)
        gradients, before = subject.gradients(handle), subject.dump()
        expected = {}
        for group, at in zip((subject.backbone, subject.head), hyper, strict=True):
            for name in group:
                expected[name], slots[name] = apply(spec, at, before[name], gradients[name], slots.get(name, {}))
        subject.step(optimizer, handle)
        after = subject.dump()
        # The steps are compared, not the parameters, which would hide an error of a step in their size.
        assert_near({n: after[n] - before[n] for n in expected}, {n: expected[n] - before[n] for n in expected}, 1e-10)
    state = subject.backend.dump_optimizer(optimizer)
    assert_near(state, {f"{name}/{slot}": a for name, arrays in slots.items() for slot, a in arrays.items()}, 1e-10)


@pytest.mark.parametrize("trainable", ["all", "head"])
@pytest.mark.parametrize("share", [0.5, 2.0])
def test_clipping_takes_the_joint_norm_of_what_trains(subject: Subject, share: float, trainable: str) -> None:
    names: Sequence[str] = subject.params if trainable == "all" else subject.head
    subject.free(names)
    handle, hyper = subject.put(), Hyper(0.125, 0.0)
    gradients = {name: g for name, g in subject.gradients(handle).items() if name in names}
    max_norm = exact(share * np.sqrt(sum(float((g**2).sum()) for g in gradients.values())))
    subject.step(subject.optimizer(SPECS["sgd"], hyper), handle, max_norm)
    after = subject.dump()
    steps = {name: (subject.start[name] - after[name]) / hyper.lr for name in names}
    assert_near(steps, reference.clip_by_norm(gradients, max_norm), 1e-10)


@pytest.mark.parametrize("weight", [0.125, exact(0.001)])
def test_the_average_moves_by_its_weight_towards_the_model(subject: Subject, weight: float) -> None:
    shadow = subject.another()
    subject.free(batch_norm=subject.norms)
    for seed in range(2):
        subject.step(subject.optimizer(SPECS["sgd"]), subject.put(seed=seed))
        before, now = shadow.dump(), subject.dump()
        subject.backend.average(shadow.model, subject.model, weight)
        after = shadow.dump()
        assert same_bits(subject.dump(), now)
        floats = [name for name in now if now[name].dtype.kind == "f"]
        expected = {name: before[name] + weight * (now[name] - before[name]) for name in floats}
        assert_near({name: after[name] for name in floats}, expected, 1e-13)
        assert same_bits(after, now, [name for name in now if name not in floats])


def test_the_average_of_equal_values_keeps_every_bit(subject: Subject) -> None:
    """So what is frozen in the model is frozen in its average."""
    shadow = subject.another()
    for _ in range(3):
        subject.backend.average(shadow.model, subject.model, exact(0.3))
    assert same_bits(shadow.dump(), subject.start)


def test_the_average_leaves_gradients_alone(subject: Subject) -> None:
    shadow, handle = subject.another(), subject.put()
    expected = subject.gradients(handle)
    subject.backward(handle)
    subject.backend.average(shadow.model, subject.model, 0.5)
    assert_near(subject.probe(), expected, 1e-12)


def test_the_average_of_another_model_is_refused(subject: Subject, dropper: Subject) -> None:
    if dropper.name.startswith(subject.name):
        dropper = Subject(subject.backend, subject.name, "float32")
    before = subject.dump()
    with refused("differ"):
        subject.backend.average(subject.model, dropper.model, 0.5)
    assert same_bits(subject.dump(), before)


def test_every_parameter_is_in_exactly_one_group(subject: Subject) -> None:
    params, spec = subject.params, SPECS["sgd"]
    for groups, named in (
        ([params[1:]], params[0]),
        ([params, params[:1]], params[0]),
        ([(*params, "no.such.weight")], "no.such.weight"),
        ([(*params, subject.statistics[0])], subject.statistics[0]),
    ):
        with refused(named):
            subject.backend.optimizer(subject.model, spec, groups)
    with refused("adamant"):
        subject.backend.optimizer(subject.model, OptimizerSpec("adamant"), [params])


def test_hyper_values_are_one_for_each_group(subject: Subject) -> None:
    optimizer = subject.optimizer(SPECS["sgd"])
    for count in (1, 3):
        with refused(str(count), "2"):
            subject.backend.set_hyper(optimizer, [Hyper(0.1, 0.0)] * count)


def test_groups_keep_to_their_own_hyper_values(subject: Subject) -> None:
    optimizer = subject.optimizer(SPECS["sgd"])
    subject.backend.set_hyper(optimizer, [Hyper(0.0, exact(0.5)), Hyper(0.125, 0.0)])
    gradients = subject.gradients(subject.put())
    subject.step(optimizer, subject.put())
    after = subject.dump()
    assert same_bits(subject.start, after, subject.backbone)
    expected = {name: subject.start[name] - 0.125 * gradients[name] for name in subject.head}
    assert_near({name: after[name] for name in subject.head}, expected, 1e-12)


@stateful
def test_optimizer_state_is_named_by_parameter_and_slot(subject: Subject, spec: OptimizerSpec) -> None:
    subject.free(subject.head)
    optimizer = subject.optimizer(spec)
    assert subject.backend.dump_optimizer(optimizer) == {}
    subject.step(optimizer, subject.put())
    state = subject.backend.dump_optimizer(optimizer)
    assert sorted(state) == sorted(f"{name}/{slot}" for name in subject.head for slot in spec.slots)
    for key, array in state.items():
        name, _, slot = key.rpartition("/")
        assert array.shape == (() if slot == "step" else subject.start[name].shape)
        assert slot != "step" or array == 1
    copies = {key: array.copy() for key, array in state.items()}
    subject.step(optimizer, subject.put())
    assert same_bits(state, copies), "the dump is an alias of the live state"


@any_optimizer
def test_a_run_resumes_bit_for_bit(subject: Subject, spec: OptimizerSpec) -> None:
    subject.free(batch_norm=subject.norms)
    optimizer, handles = subject.optimizer(spec), [subject.put(seed=s) for s in range(3)]
    subject.step(optimizer, handles[0])
    subject.step(optimizer, handles[1])
    arrays, state = subject.dump(), subject.backend.dump_optimizer(optimizer)
    subject.step(optimizer, handles[2])
    resumed = subject.another()
    resumed.load(arrays)
    resumed.free(batch_norm=resumed.norms)
    fresh = resumed.optimizer(spec)
    resumed.backend.load_optimizer(fresh, state)
    resumed.step(fresh, resumed.put(seed=2))
    assert same_bits(resumed.dump(), subject.dump())
    assert same_bits(resumed.backend.dump_optimizer(fresh), subject.backend.dump_optimizer(optimizer))


@stateful
def test_loading_an_empty_state_forgets_the_old_one(subject: Subject, spec: OptimizerSpec) -> None:
    optimizer, handle = subject.optimizer(spec), subject.put()
    subject.step(optimizer, handle)
    expected = subject.dump()
    subject.load(subject.start)
    subject.backend.load_optimizer(optimizer, {})
    assert subject.backend.dump_optimizer(optimizer) == {}
    subject.step(optimizer, handle)
    assert same_bits(subject.dump(), expected)


@stateful
def test_a_foreign_optimizer_state_is_refused(subject: Subject, spec: OptimizerSpec) -> None:
    optimizer = subject.optimizer(spec)
    subject.step(optimizer, subject.put())
    state = subject.backend.dump_optimizer(optimizer)
    key = next(key for key in state if not key.endswith("/step"))
    name, _, slot = key.rpartition("/")
    for change, mentions in (
        ({f"no.such.weight/{slot}": state[key]}, ["no.such.weight"]),
        ({f"{name}/no_such_slot": state[key]}, ["no_such_slot"]),
        ({key: state[key][..., :1]}, [key, str(state[key].shape[0])]),
    ):
        with refused(*mentions):
            subject.backend.load_optimizer(optimizer, {**state, **change})
    assert same_bits(subject.backend.dump_optimizer(optimizer), state), "a refused state changed the optimizer"
