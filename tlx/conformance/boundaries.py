"""Batches that begin in the middle of a model: what enters a module, kept and put back."""

from __future__ import annotations

import numpy as np
import pytest

from tlx.backend import Handle, Hyper, OptimizerSpec
from tlx.conformance.subject import N, Subject, assert_near, exact, refused, same_bits, soft_targets


def taken(model: Subject, boundary: str, n: int = N, *, seed: int = 1, key: tuple[int, int, int] = (0, 0, 0)) -> Handle:
    """A batch that begins at a boundary, of what a whole batch brings there."""
    features = model.backend.fetch([model.backend.features(model.model, model.put(n, seed=seed), boundary)])[0]
    assert features.dtype == np.float64 and len(features) == n
    return model.put(n, seed=seed, key=key, images=features, boundary=boundary, targets=soft_targets(n))


def first_boundary(model: Subject) -> str:
    """The first of the named boundaries from which the logits are those of the whole model."""
    expected = model.logits(model.put())
    for boundary in model.backend.boundaries(model.model):
        if (model.logits(taken(model, boundary)) == expected).all():
            return boundary
    pytest.fail(f"no boundary of {model.backend.boundaries(model.model)} gives the whole model's logits")


def test_a_batch_can_begin_where_the_model_begins_to_train(subject: Subject, dropper: Subject) -> None:
    """From there on it evaluates and trains as the whole: losses, gradients, dropped units."""
    for model in (subject, dropper):
        model.free(model.head)
        boundary, key = first_boundary(model), (3, 4, 0)
        whole, part = model.put(key=key, targets=soft_targets()), taken(model, boundary, key=key)
        assert model.evaluate(part) == pytest.approx(model.evaluate(whole), rel=1e-12)
        assert model.backward(part) == pytest.approx(model.backward(whole), rel=1e-12)
        model.free(model.head)
        of_whole, of_part = [model.gradients(handle) for handle in (whole, part)]
        assert_near(of_part, of_whole, 1e-12)
        optimizer = model.optimizer(OptimizerSpec("sgd", momentum=exact(0.9)), Hyper(exact(0.01), 0.0))
        for _ in range(2):
            model.step(optimizer, part)
        after = model.dump()
        assert same_bits(after, model.start, [*model.backbone, *model.statistics])
        assert not same_bits(after, model.start, model.head)
        model.load(model.start)


def test_no_boundary_lies_behind_what_trains_or_adapts(subject: Subject) -> None:
    """Where all trains, only what owns no parameters, such as a resize, may come before a boundary."""
    subject.free()
    assert subject.backend.boundaries(subject.model)[:1] in ((), (subject.specs[0].module,))
    subject.free(subject.head, subject.norms)
    assert subject.backend.boundaries(subject.model)[:1] == subject.norms[:1]


def test_features_stop_where_they_are_asked_to(subject: Subject) -> None:
    """The head's input is the default; a module before it sees something else; nothing changes."""
    handle, norm = subject.put(), subject.norms[-1]
    by_name = subject.backend.fetch([subject.backend.features(subject.model, handle, subject.spec.head)])[0]
    assert np.array_equal(by_name, subject.features(handle))
    assert not np.array_equal(
        subject.backend.fetch([subject.backend.features(subject.model, handle, norm)])[0].ravel()[:5],
        by_name.ravel()[:5],
    )
    assert same_bits(subject.dump(), subject.start)


def test_an_unknown_boundary_is_refused(subject: Subject) -> None:
    with refused("no_such"):
        subject.backend.features(subject.model, subject.put(), "no_such")
    with refused("no_such"):
        subject.put(images=np.zeros((N, 3)), boundary="no_such")
