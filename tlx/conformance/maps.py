"""The last map of features: whose gradient it is told with, and that looking at it changes nothing."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest

from tlx.backend import Array, Batch, Explains, FeatureMap, Handle, Preprocess
from tlx.conformance.subject import CLASSES, SIZE, N, Subject, assert_near, batch, same_bits

CHOSEN = np.arange(N) % CLASSES


def mapped(subject: Subject, handle: Handle, classes: Array | None = CHOSEN) -> FeatureMap:
    """Look at the last map; a backend may lack that."""
    if not hasattr(subject.backend, "feature_map"):
        pytest.skip(f"backend {subject.backend.name!r} has no feature_map, so its runs cannot be explained")
    return cast(Explains, subject.backend).feature_map(subject.model, handle, classes)


def shifted(by: float) -> Batch:
    """The batch of noise, a little darker."""
    plain = Preprocess(SIZE)
    red, green, blue = (mean + by for mean in plain.mean)
    return batch(preprocess=Preprocess(SIZE, mean=(red, green, blue)))


def test_a_map_has_more_than_one_cell_and_a_gradient_for_each_value(subject: Subject) -> None:
    seen = mapped(subject, subject.put())
    images, channels, rows, columns = seen.values.shape
    assert images == N and channels > 0 and rows * columns > 1
    assert seen.gradients.shape == seen.values.shape and seen.values.dtype.kind == seen.gradients.dtype.kind == "f"


def test_a_map_comes_with_the_logits_of_evaluation(subject: Subject) -> None:
    handle = subject.put()
    assert_near({"logits": mapped(subject, handle).logits}, {"logits": subject.logits(handle)}, 1e-12)


def test_gradients_of_a_map_tell_how_the_logit_of_each_image_moves(subject: Subject) -> None:
    """Of each image's own class and of no other image: by the difference that slightly darker pixels make."""
    step = 1e-7
    low, high = (mapped(subject, subject.backend.put(subject.model, shifted(by))) for by in (-step, step))
    seen = mapped(subject, subject.put())
    moves = (seen.gradients * (high.values - low.values)).reshape(N, -1).sum(axis=1)
    assert_near({"moves": moves}, {"moves": (high.logits - low.logits)[np.arange(N), CHOSEN]}, 1e-5)


def test_a_map_is_told_by_the_highest_logit_where_no_class_is_named(subject: Subject) -> None:
    handle = subject.put()
    named = mapped(subject, handle, subject.logits(handle).argmax(axis=1))
    assert_near({"gradients": mapped(subject, handle, None).gradients}, {"gradients": named.gradients}, 1e-12)


def test_an_image_has_the_same_map_in_any_batch(subject: Subject) -> None:
    whole, first = mapped(subject, subject.put()), mapped(subject, subject.put(1), CHOSEN[:1])
    # The first image of a smaller batch of noise is the same.
    assert_near({"gradients": whole.gradients[:1]}, {"gradients": first.gradients}, 1e-10)


def test_looking_at_a_map_changes_nothing(subject: Subject) -> None:
    """Neither values nor what trains; and gradients that are there add up with later ones as if nobody had looked."""
    subject.free(subject.head)
    handle, before = subject.put(), subject.dump()
    expected = subject.gradients(handle)
    subject.backward(handle, 0.5)
    mapped(subject, handle)
    subject.backward(handle, 0.5)
    actual = subject.probe()
    assert same_bits(before, subject.dump())
    assert_near(actual, expected)
