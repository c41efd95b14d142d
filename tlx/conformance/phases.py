"""What trains and what must not move; how BatchNorm behaves."""

from __future__ import annotations

import numpy as np
import pytest

from tlx.backend import Array, Hyper, OptimizerSpec
from tlx.backend.optimizers import RULES
from tlx.conformance.subject import (
    BN_EPS,
    BN_KEEP,
    CLASSES,
    N,
    Subject,
    apply,
    assert_near,
    batch,
    exact,
    moved,
    refused,
    same_bits,
)

SGD = OptimizerSpec("sgd", momentum=exact(0.9))
# Every rule, with momentum where it has one, and an eps that keeps the rounding of tiny gradients in bounds.
SPECS = {name: OptimizerSpec(name, momentum=exact(0.9), eps=exact(1e-4)) for name in RULES}
any_optimizer = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())


@any_optimizer
def test_what_is_frozen_does_not_move(subject: Subject, spec: OptimizerSpec) -> None:
    subject.free(subject.head)
    optimizer, handle = subject.optimizer(spec), subject.put()
    for _ in range(2):
        subject.step(optimizer, handle)
    after = subject.dump()
    assert moved(subject.start, after, subject.backbone + subject.statistics) == []
    assert moved(subject.start, after, subject.head) == list(subject.head)


@any_optimizer
def test_a_parameter_frozen_mid_run_stops_at_once(subject: Subject, spec: OptimizerSpec) -> None:
    """Momentum and decay would move it on if its gradient were zero instead of absent."""
    optimizer, handle = subject.optimizer(spec), subject.put()
    subject.step(optimizer, handle)
    subject.free(subject.head)
    before = subject.dump()
    for _ in range(2):
        subject.step(optimizer, handle)
    after = subject.dump()
    assert moved(before, after, subject.backbone) == []
    assert moved(before, after, subject.head) == list(subject.head)


@any_optimizer
def test_optimizer_state_survives_freezing(subject: Subject, spec: OptimizerSpec) -> None:
    """Four steps, the backbone frozen in the second, the head in the third; the rule in NumPy skips what is frozen."""
    hyper = Hyper(exact(1e-5), exact(0.1))  # a larger rate lets a network with fixed statistics explode
    optimizer, handle = subject.optimizer(spec, hyper), subject.put()
    slots: dict[str, dict[str, Array]] = {}
    for trainable in (subject.params, subject.head, subject.backbone, subject.params):
        subject.free(trainable)
        gradients, expected = subject.gradients(handle), subject.dump()
        for name in trainable:
            expected[name], slots[name] = apply(spec, hyper, expected[name], gradients[name], slots.get(name, {}))
        subject.step(optimizer, handle)
        assert_near(subject.dump(), expected)


@any_optimizer
def test_a_parameter_unfrozen_late_starts_afresh(subject: Subject, spec: OptimizerSpec) -> None:
    """Adam's bias correction counts a parameter's own steps."""
    hyper = Hyper(exact(0.01), 0.0)
    optimizer, handle = subject.optimizer(spec, hyper), subject.put()
    subject.free(subject.head)
    for _ in range(3):
        subject.step(optimizer, handle)
    subject.free()
    gradients, before = subject.gradients(handle), subject.dump()
    subject.step(optimizer, handle)
    after = subject.dump()
    expected = {name: apply(spec, hyper, before[name], gradients[name], {})[0] for name in subject.backbone}
    assert_near({name: after[name] for name in subject.backbone}, expected)


def test_a_group_may_be_frozen_as_a_whole(subject: Subject) -> None:
    subject.free(subject.backbone[:1])
    optimizer = subject.optimizer(SGD)
    subject.step(optimizer, subject.put())
    assert moved(subject.start, subject.dump(), subject.params) == [subject.backbone[0]]


def test_a_single_parameter_trains_as_it_would_among_all(subject: Subject) -> None:
    handle = subject.put()
    name = subject.backbone[0]
    among_all = subject.gradients(handle)[name]
    subject.free([name])
    alone = subject.gradients(handle)
    assert_near({name: alone[name]}, {name: among_all}, 1e-12)
    assert [n for n in subject.params if alone[n].any()] == [name]


def test_unknown_names_are_refused(subject: Subject) -> None:
    for trainable, batch_norm, named in (
        (["no.such.weight"], [], "no.such.weight"),
        ([subject.statistics[0]], [], subject.statistics[0]),
        ([], ["no.such.module"], "no.such.module"),
        ([], [subject.spec.head], subject.spec.head),
    ):
        with refused(named):
            subject.free(trainable, batch_norm)


def test_kept_statistics_keep_every_bit_while_the_affine_part_trains(subject: Subject) -> None:
    optimizer, handle = subject.optimizer(SGD), subject.put()
    for _ in range(2):
        subject.step(optimizer, handle)
    after = subject.dump()
    assert moved(subject.start, after, subject.statistics) == []
    assert moved(subject.start, after, subject.params) == list(subject.params)


def test_statistics_adapt_while_the_affine_part_is_frozen(subject: Subject) -> None:
    subject.free(subject.head, subject.norms)
    optimizer, handle = subject.optimizer(SGD), subject.put()
    for count in (1, 2):
        subject.step(optimizer, handle)
        after = subject.dump()
        counters = [name for name in subject.statistics if name.endswith("num_batches_tracked")]
        assert {int(after[name]) for name in counters} == {int(subject.start[counters[0]]) + count}
    assert moved(subject.start, after, subject.statistics) == list(subject.statistics)
    assert moved(subject.start, after, subject.backbone) == []


def test_only_the_named_modules_adapt(subject: Subject) -> None:
    last = subject.norms[-1]
    subject.free(batch_norm=[last])
    subject.step(subject.optimizer(SGD), subject.put())
    expected = [name for name in subject.statistics if name.rpartition(".")[0] == last]
    assert moved(subject.start, subject.dump(), subject.statistics) == expected


def test_a_phase_can_be_left_again(subject: Subject) -> None:
    handle = subject.put()
    expected = subject.gradients(handle)
    subject.free(subject.head, subject.norms)
    subject.backward(handle)
    subject.load(subject.start)
    subject.free()
    assert_near(subject.gradients(handle), expected, 1e-12)
    subject.step(subject.optimizer(SGD), handle)
    assert moved(subject.start, subject.dump(), subject.statistics) == []


# BatchNorm's numbers. The last norm of either model sees one value per sample and channel at this image size, so
# its batch has N values; with all others kept, what enters it does not depend on its own statistics.


def adapt_last(subject: Subject, mean: float = 0.0, var: float = 1.0) -> tuple[str, str]:
    """Let the last norm adapt, from these statistics; return the names of its mean and variance."""
    norm = subject.norms[-1]
    names = f"{norm}.running_mean", f"{norm}.running_var"
    values = {names[0]: mean, names[1]: var}
    subject.load({**subject.start, **{n: np.full_like(subject.start[n], v) for n, v in values.items()}})
    subject.free(batch_norm=[norm])
    return names


def test_running_statistics_keep_exactly_float32_of_nine_tenths(subject: Subject) -> None:
    handle, dumps = subject.put(), []
    for value in (0.0, 1.0):
        names = adapt_last(subject, value, value)
        subject.backward(handle)
        dumped = subject.dump()
        dumps.append({name: dumped[name] for name in names})
    expected = {name: np.full_like(dumps[0][name], BN_KEEP) for name in names}
    assert_near({name: dumps[1][name] - dumps[0][name] for name in names}, expected, 1e-12)


def batch_moments(subject: Subject, n: int = N) -> dict[str, Array]:
    """The batch's mean and *unbiased* variance as the last norm's update from zero shows them."""
    whole = batch(N)
    repeated = [np.concatenate([a] * (n // N)) for a in (whole.images, whole.labels)]
    handle = subject.put(n, images=repeated[0], labels=repeated[1])
    names = adapt_last(subject, 0.0, 0.0)
    subject.backward(handle)
    dumped = subject.dump()
    return {name: dumped[name] / (1 - BN_KEEP) for name in names}


def test_the_running_variance_takes_the_unbiased_one(subject: Subject) -> None:
    """Doubling a batch leaves its biased variance, so the unbiased ones are as N / (N - 1) to 2N / (2N - 1)."""
    single, double = batch_moments(subject), batch_moments(subject, 2 * N)
    mean, var = single
    assert_near({mean: double[mean]}, {mean: single[mean]}, 1e-11)
    assert_near({var: double[var] * (2 * N - 1) / (2 * N)}, {var: single[var] * (N - 1) / N}, 1e-11)


def test_a_batch_is_normalised_by_its_mean_and_biased_variance(subject: Subject) -> None:
    """With these as running statistics, evaluation gives the loss that training gave."""
    moments = batch_moments(subject)
    mean, var = adapt_last(subject)
    handle = subject.put()
    total, correct = subject.backward(handle)
    subject.load({**subject.start, mean: moments[mean], var: moments[var] * (N - 1) / N})
    evaluated, counted = subject.evaluate(handle)
    assert correct == counted and abs(total - evaluated) <= 1e-11 * abs(total)


def test_normalisation_adds_float32_of_1e_5_to_the_variance(subject: Subject) -> None:
    """The scale sqrt(var + eps) cancels the normalisation, whatever the variance, if and only if eps is right."""
    norm, handle, outputs = subject.norms[-1], subject.put(), []
    weight, var = f"{norm}.weight", f"{norm}.running_var"
    for variance in (0.0, 3.0):
        scale = np.full_like(subject.start[weight], np.sqrt(variance + BN_EPS))
        subject.load({**subject.start, weight: scale, var: np.full_like(subject.start[var], variance)})
        outputs.append({"logits": subject.logits(handle)})
    assert outputs[0]["logits"].shape == (N, CLASSES)
    assert_near(outputs[0], outputs[1], 1e-12)


def test_batch_statistics_of_one_sample_are_refused_not_nan(subject: Subject) -> None:
    subject.free(batch_norm=[subject.norms[-1]])
    with refused("one|1"):
        subject.backward(subject.put(1))
    assert same_bits(subject.dump(), subject.start, subject.params)
    assert all(np.isfinite(array).all() for array in subject.dump().values())
