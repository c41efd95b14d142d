"""Pixels and labels; evaluation, features, dropout, fetching, repeatability."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tlx.backend import Array, Backend, OptimizerSpec, Preprocess
from tlx.conformance import reference
from tlx.conformance.subject import (
    CLASSES,
    PLAIN,
    SIZE,
    N,
    Subject,
    assert_near,
    batch,
    choose,
    exact,
    refused,
    same_bits,
)
from tlx.rng import keep_mask

MOMENTUM = OptimizerSpec("sgd", momentum=exact(0.9))
KEYS = [(seed, step, row) for seed in (0, 1) for step in (0, 1) for row in (0, 1)]
RATE = 0.5  # the dropout of both models that have one


def test_images_are_enlarged_bilinearly_between_pixel_centres(subject: Subject) -> None:
    """Twofold enlarging mixes by quarters, so multiples of 16 come out whole and can be fed directly, too."""
    small = np.random.Generator(np.random.Philox(0)).integers(0, 16, (2, 3, SIZE // 2, SIZE // 2)) * 16
    wide = small.astype(np.float64)
    for axis in (2, 3):
        before, after = np.roll(wide, 1, axis), np.roll(wide, -1, axis)
        edge = [slice(None)] * 4
        edge[axis] = slice(0, 1)
        before[tuple(edge)] = wide[tuple(edge)]
        edge[axis] = slice(-1, None)
        after[tuple(edge)] = wide[tuple(edge)]
        pairs = np.stack([0.75 * wide + 0.25 * before, 0.75 * wide + 0.25 * after], axis + 1)
        wide = pairs.reshape([2 * n if i == axis else n for i, n in enumerate(wide.shape)])
    assert (wide == wide.astype(np.uint8)).all()
    logits = [subject.logits(subject.put(2, images=images.astype(np.uint8))) for images in (small, wide)]
    assert_near({"logits": logits[0]}, {"logits": logits[1]}, 1e-10)


def test_images_are_enlarged_bicubically_as_the_preprocessing_says(subject: Subject) -> None:
    """Threefold enlarging mixes by 54ths with a = -0.75, so steps of 54 come out whole along one axis."""
    small, wide = 16, 48
    values = 60 + 54 * np.random.Generator(np.random.Philox(0)).integers(0, 3, (2, 3, small))
    place = (np.arange(wide) - 1) // 3  # the pixel that lies left of each point, or under it
    shares = np.array([[-3, 20, 43, -6], [0, 54, 0, 0], [-6, 43, 20, -3]])[np.arange(wide) % 3]
    near = np.clip(place[:, None] + np.arange(-1, 3), 0, small - 1)
    enlarged = (values[..., near] * shares).sum(-1)
    assert not (enlarged % 54).any() and enlarged.min() >= 0 and enlarged.max() // 54 <= 255
    bicubic = Preprocess(wide, interpolation="bicubic")
    for turn in ((0, 1, 2, 3), (0, 1, 3, 2)):
        images = (np.repeat(line[..., None], line.shape[-1], 3).transpose(turn) for line in (values, enlarged // 54))
        given, expected = (
            subject.logits(subject.put(2, images=np.ascontiguousarray(image).astype(np.uint8), preprocess=bicubic))
            for image in images
        )
        assert_near({"logits": given}, {"logits": expected}, 1e-10)


def test_pixels_are_scaled_and_normalised_per_channel(subject: Subject) -> None:
    """(51 / 255 - 0.1) / 0.1 is 255 / 255; a plane of the mean is 0 whatever the deviation."""

    def logits(values: tuple[int, int, int], mean: tuple[float, ...], std: tuple[float, ...]) -> dict[str, Array]:
        images = np.broadcast_to(np.array(values, np.uint8).reshape(1, 3, 1, 1), (1, 3, SIZE, SIZE))
        pre = Preprocess(SIZE, mean, std)  # type: ignore[arg-type]
        return {"logits": subject.logits(subject.put(1, images=images, preprocess=pre))}

    expected = logits((255, 0, 0), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert_near(logits((51, 51, 102), (0.1, 0.2, 0.4), (0.1, 0.7, 0.3)), expected, 1e-10)
    assert np.linalg.norm(logits((0, 255, 0), (0.0,) * 3, (1.0,) * 3)["logits"] - expected["logits"]) > 1e-6


def test_put_copies(subject: Subject) -> None:
    whole = batch()
    handle = subject.backend.put(subject.model, whole)
    before = subject.evaluate(handle), subject.logits(handle)
    whole.images[...] = 0
    whole.labels[...] = 0
    assert subject.evaluate(handle) == before[0] and (subject.logits(handle) == before[1]).all()


UNFIT: dict[str, tuple[dict[str, Any], list[str]]] = {
    "float images": ({"images": np.zeros((N, 3, SIZE, SIZE), np.float32)}, ["float32", "uint8"]),
    "channels last": ({"images": np.zeros((N, SIZE, SIZE, 3), np.uint8)}, ["3"]),
    "one image": ({"images": np.zeros((3, SIZE, SIZE), np.uint8)}, ["3"]),
    "too large": ({"images": np.zeros((N, 3, SIZE + 1, SIZE), np.uint8)}, [str(SIZE + 1), str(SIZE)]),
    "no images": ({"images": np.zeros((0, 3, SIZE, SIZE), np.uint8), "labels": np.zeros(0, np.int64)}, ["0"]),
    "fewer labels": ({"labels": np.zeros(N - 1, np.int64)}, [str(N - 1), str(N)]),
    "int32 labels": ({"labels": np.zeros(N, np.int32)}, ["int32", "int64"]),
    "labels of fewer classes": ({"labels": np.zeros((N, CLASSES - 1), np.int64)}, [str(CLASSES)]),
    "several labels above 1": ({"labels": np.full((N, CLASSES), 2)}, ["0..1"]),
    "label too high": ({"labels": np.array([0, 1, 2, CLASSES])}, [str(CLASSES - 1)]),
    "targets of another shape": ({"targets": np.zeros((N, CLASSES + 1))}, [str(CLASSES + 1), str(CLASSES)]),
    "targets in float32": ({"targets": np.zeros((N, CLASSES), np.float32)}, ["float32", "float64"]),
    "targets that are NaN": ({"targets": np.full((N, CLASSES), np.nan)}, ["finite"]),
    "negative label": ({"labels": np.array([0, 1, 2, -1])}, [str(CLASSES - 1)]),
}


@pytest.mark.parametrize("fault", UNFIT)
def test_an_unfit_batch_is_refused(subject: Subject, fault: str) -> None:
    fields, mentions = UNFIT[fault]
    with refused(*mentions):
        subject.put(**fields)


@pytest.mark.parametrize("n", [1, 3])
def test_the_last_partial_batch_trains(subject: Subject, n: int) -> None:
    handle = subject.put(n)
    subject.step(subject.optimizer(MOMENTUM), handle)
    after = subject.dump()
    assert not same_bits(after, subject.start) and all(np.isfinite(array).all() for array in after.values())


def test_evaluation_changes_nothing(subject: Subject) -> None:
    """No value, no gradient, no mode: also between backward and update, training goes on as if it had not been."""
    runs = []
    for evaluated in (False, True):
        subject.load(subject.start)
        subject.free(batch_norm=subject.norms)
        optimizer, handle, other = subject.optimizer(MOMENTUM), subject.put(), subject.put(3, seed=2)
        for _ in range(2):
            subject.backend.backward(subject.model, handle)
            if evaluated:
                before, state = subject.dump(), subject.backend.dump_optimizer(optimizer)
                subject.evaluate(other)
                subject.logits(other)
                subject.features(other)
                assert same_bits(subject.dump(), before)
                assert same_bits(subject.backend.dump_optimizer(optimizer), state)
            subject.backend.update(subject.model, optimizer)
        runs.append(subject.dump())
    if subject.backend.capabilities().deterministic:
        assert same_bits(runs[0], runs[1])
    assert_near(runs[0], runs[1], 1e-11)


def test_evaluation_uses_running_statistics_in_every_phase(subject: Subject) -> None:
    handle = subject.put()
    expected = {"logits": subject.logits(handle), "features": subject.features(handle)}
    loss = subject.evaluate(handle)
    subject.free(batch_norm=subject.norms)
    subject.backward(handle)
    subject.load(subject.start)
    assert_near({"logits": subject.logits(handle), "features": subject.features(handle)}, expected, 1e-12)
    assert subject.evaluate(handle) == pytest.approx(loss, rel=1e-12)


def test_a_sample_is_evaluated_independently_of_its_batch(subject: Subject) -> None:
    whole = batch()
    together = subject.logits(subject.put())
    alone = [subject.logits(subject.put(1, images=whole.images[i : i + 1], labels=whole.labels[:1])) for i in range(N)]
    assert_near({"logits": np.concatenate(alone)}, {"logits": together}, 1e-12)


def head_logits(subject: Subject, features: Array) -> Array:
    """What the head makes of its input: a linear layer; or SqueezeNet's 1 x 1 convolution, ReLU and mean."""
    weight, bias = (subject.start[name] for name in subject.head)
    if features.ndim == 2:
        return reference.linear(features, weight, bias)
    maps = np.einsum("nchw,kc->nkhw", features, weight[:, :, 0, 0]) + bias[:, None, None]
    return np.asarray(reference.relu(maps).mean(axis=(2, 3)))


def test_features_are_what_enters_the_head(subject: Subject, dropper: Subject) -> None:
    for model in (subject, dropper):
        handle = model.put()
        features = model.features(handle)
        assert features.shape[:2] == (N, model.start[model.head[0]].shape[1]) and features.dtype == np.float64
        assert_near({"logits": model.logits(handle)}, {"logits": head_logits(model, features)}, 1e-12)


def test_dropout_takes_the_masks_of_the_core(dropper: Subject) -> None:
    """Seed, step and row of the batch's key name the mask, so every backend drops the same units."""
    for key in ((0, 0, 0), (0, 1, 0), (5, 1, 0), (5, 1, 3)):
        handle = dropper.put(key=key)
        features = dropper.features(handle)
        dropped = features * keep_mask(*key, 0, features.shape, RATE) / (1 - RATE)
        expected, _ = reference.cross_entropy(head_logits(dropper, dropped), batch().labels)
        assert dropper.backward(handle)[0] == pytest.approx(expected * N, rel=1e-12)


def test_dropout_repeats_for_a_key_and_differs_between_keys(dropper: Subject) -> None:
    losses = {key: dropper.backward(dropper.put(key=key))[0] for key in KEYS}
    assert len(set(losses.values())) == 8
    for key, loss in losses.items():
        assert dropper.backward(dropper.put(key=key))[0] == pytest.approx(loss, rel=1e-13)


def test_dropout_reaches_the_gradients(dropper: Subject) -> None:
    """A head's weight gets no gradient from units that were dropped for every sample."""
    handle = dropper.put(1, key=(3, 3, 0))
    features = dropper.features(handle)
    mask = keep_mask(3, 3, 0, 0, features.shape, RATE) & (features != 0)
    reached = mask.reshape(mask.shape[1], -1).any(axis=1)
    weight = dropper.gradients(handle)[dropper.head[0]]
    slopes = np.abs(weight).reshape(CLASSES, len(reached), -1).sum(axis=(0, 2))
    assert not reached.all() and not slopes[~reached].any() and slopes[reached].any()


def test_dropout_rests_in_evaluation_and_away_from_what_trains(dropper: Subject) -> None:
    losses = {dropper.evaluate(dropper.put(key=(0, step, 0)))[0] for step in range(3)}
    assert len(losses) == 1
    around = dropper.spec.head.rpartition(".")[0]
    far = [name for name in dropper.backbone if around and not name.startswith(around + ".")]
    if far:  # a flat model has no part without its dropout
        dropper.free(far)
        assert dropper.backward(dropper.put())[0] == pytest.approx(losses.pop(), rel=1e-12)


def test_evaluation_returns_the_logits_that_it_judged(subject: Subject) -> None:
    handle = subject.put()
    (judged,) = subject.backend.fetch(subject.backend.evaluate(subject.model, handle)[2:])
    expected = subject.logits(handle)
    assert judged.dtype == expected.dtype and judged.tobytes() == expected.tobytes()


def test_fetch_copies_to_the_host_in_order(subject: Subject) -> None:
    handle = subject.put()
    total, correct, _ = subject.backend.evaluate(subject.model, handle)
    logits = subject.backend.logits(subject.model, handle)
    fetched = subject.backend.fetch([correct, logits, total, correct])
    assert [type(array) for array in fetched] == [np.ndarray] * 4
    assert [array.shape for array in fetched] == [(), (N, CLASSES), (), ()]
    assert (float(fetched[2]), int(fetched[0])) == subject.evaluate(handle) and fetched[0] == fetched[3]
    scalars = subject.backend.fetch([total, correct])
    assert [float(s) for s in scalars] == [float(fetched[2]), float(fetched[0])]
    fetched[1][...] = 0
    assert subject.logits(handle).any()
    assert subject.backend.fetch([]) == []


def test_a_run_repeats_bit_for_bit(backend: Backend) -> None:
    if not backend.capabilities().deterministic:
        pytest.skip(f"backend {backend.name!r} does not claim to be deterministic")
    runs = []
    for _ in range(2):
        subject = Subject(backend, choose(backend, PLAIN))
        subject.free(batch_norm=subject.norms)
        optimizer = subject.optimizer(MOMENTUM)
        for seed in range(2):
            subject.step(optimizer, subject.put(seed=seed))
        runs.append(subject.dump())
    assert same_bits(runs[0], runs[1])


def test_float32_stays_float32_and_near_float64(subject: Subject) -> None:
    single = Subject(subject.backend, subject.name, "float32")
    for model in (single, subject):
        model.step(model.optimizer(OptimizerSpec("sgd")), model.put())
    narrow, wide = single.dump(), subject.dump()
    assert {str(narrow[name].dtype) for name in single.params} == {"float32"}
    assert_near({n: narrow[n].astype(np.float64) for n in narrow}, {n: wide[n] for n in narrow}, 1e-3)
    logits = single.logits(single.put())
    assert logits.dtype == np.float32
    assert_near({"logits": logits}, {"logits": subject.logits(subject.put())}, 1e-2)
