"""The weighted nearest neighbours of strategy knn, against the plain sums and against scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from tlx.training import neighbors
from tlx.training.neighbors import FLOOR, NEIGHBORS, TEMPERATURE, Bank, Choice, choose_neighbors, unit


def drawn(count: int, seed: int, width: int = 6) -> Any:
    return np.random.default_rng(seed).normal(0.3, 1, (count, width)).astype(np.float32)


def bank_of(features: Any, labels: Any, k: int, classes: int = 4) -> Bank:
    return Bank(unit(features), np.asarray(labels), classes, k)


def plainly(bank: Bank, features: Any, k: int) -> Any:
    """Each class's share of the votes, one image and one vote at a time."""
    rows = []
    for query in unit(features).astype(np.float64):
        similar = np.array([np.float32(query @ row) for row in bank.features.astype(np.float64)], np.float64)
        nearest = sorted(range(len(similar)), key=lambda row: (-similar[row], row))[:k]
        shares = np.zeros(bank.classes)
        for row in nearest:
            shares[bank.labels[row]] += np.exp(similar[row] / TEMPERATURE)
        rows.append(shares / shares.sum())
    return np.array(rows)


@pytest.mark.parametrize("k", [1, 7, 40])
def test_votes_are_those_of_the_plain_sum(k: int) -> None:
    bank, queries = bank_of(drawn(40, 0), np.arange(40) % 4, k), drawn(25, 1)
    expected = plainly(bank, queries, k)
    np.testing.assert_allclose(np.exp(bank.logits(queries)), np.maximum(expected, FLOOR), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("k", [1, 10])
def test_votes_are_those_of_scikit_learn(k: int) -> None:
    features, labels, queries = drawn(200, 2), np.arange(200) % 4, drawn(50, 3)
    model = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda far: np.exp((1 - far) / TEMPERATURE)
    ).fit(features.astype(np.float64), labels)
    bank = bank_of(features, labels, k)
    expected = model.predict_proba(queries.astype(np.float64))
    np.testing.assert_allclose(np.exp(bank.logits(queries)), np.maximum(expected, FLOOR), atol=1e-5)
    assert (bank.logits(queries).argmax(axis=1) == model.predict(queries.astype(np.float64))).all()


def test_of_equal_similarities_the_earlier_image_votes_and_of_equal_votes_the_first_class_counts() -> None:
    same = np.array([[1, 0], [0, 1], [0, 2], [0, 3]], np.float32)
    bank = bank_of(same, [3, 2, 1, 0], 1)
    similar, rows = bank.nearest(np.array([[0, 5]], np.float32), 4)
    assert rows.tolist() == [[1, 2, 3, 0]] and similar.tolist() == [[1, 1, 1, 0]]
    assert bank.logits(np.array([[0, 5]], np.float32)).argmax() == 2
    tied = bank_of(same, [3, 2, 1, 0], 3).logits(np.array([[0, 5]], np.float32))
    assert tied.argmax() == 0 and tied[0, 0] == tied[0, 1] == tied[0, 2]


def test_neither_batches_nor_blocks_change_a_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    bank, queries = bank_of(drawn(300, 4), np.arange(300) % 4, 10), drawn(70, 5)
    expected = bank.logits(queries)
    assert np.array_equal(np.concatenate([bank.logits(queries[at : at + 1]) for at in range(70)]), expected)
    monkeypatch.setattr(neighbors, "QUERIES", 11)
    for block in (7, 64, 299):
        monkeypatch.setattr(neighbors, "BLOCK", block)
        assert np.array_equal(bank.logits(queries), expected)


def test_an_image_is_no_neighbour_of_itself_where_that_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    bank, rows = bank_of(drawn(30, 6), np.arange(30) % 4, 3), np.array([0, 7, 29])
    assert bank.nearest(bank.features[rows], 1)[1].ravel().tolist() == rows.tolist()
    monkeypatch.setattr(neighbors, "BLOCK", 8)
    nearest = bank.nearest(bank.features[rows], 29, rows)[1]
    assert all(sorted(found) == sorted({*range(30)} - {own}) for found, own in zip(nearest, rows, strict=True))


def test_negative_similarities_and_features_of_zero_are_in_order() -> None:
    bank = bank_of(np.array([[-1, 0], [0, 0], [-1, 1], [1, 0]], np.float32), [0, 1, 2, 3], 4)
    similar, rows = bank.nearest(np.array([[1, 0]], np.float32), 4)
    assert rows.tolist() == [[3, 1, 2, 0]] and similar[0].tolist() == [1, 0, np.float32(-np.sqrt(0.5)), -1]


def chosen(bank: Bank, val: Any, k: int | None = None) -> Choice:
    choosing = choose_neighbors(bank, val, k)
    while True:
        try:
            next(choosing)
        except StopIteration as stop:
            value: Choice = stop.value
            return value


def overlapping(count: int, seed: int) -> tuple[Any, Any]:
    labels = np.arange(count) % 4
    return drawn(count, seed) + 0.7 * np.eye(6, dtype=np.float32)[labels], labels


def test_validation_chooses_how_many_vote() -> None:
    bank, val = bank_of(*overlapping(250, 7), 1), overlapping(120, 8)
    choice = chosen(bank, val)
    assert [trial.value for trial in choice.tried] == list(NEIGHBORS) and choice.notes == ()
    best = max(choice.tried, key=lambda trial: (trial.val.accuracy, -trial.val.loss))
    assert choice.k == best.value and choice.val == best.val and len({t.val.accuracy for t in choice.tried}) > 1
    assert chosen(bank, val, 37).k == 37


def test_without_validation_each_training_image_is_classified_by_the_others() -> None:
    features, labels = overlapping(60, 9)
    choice = chosen(bank_of(features, labels, 1), None)
    assert [trial.value for trial in choice.tried] == [10, 20] and choice.val is None
    assert choice.notes == (
        "there is no validation part, so each training image was classified by the others to choose k",
    )
    right = []
    for row in range(60):
        others = np.delete(np.arange(60), row)
        bank = bank_of(features[others], labels[others], choice.k)
        right.append(bank.logits(features[row : row + 1]).argmax() == labels[row])
    assert choice.train.accuracy == np.mean(right) and choice.train.images == 60


def test_few_training_images_all_vote() -> None:
    assert chosen(bank_of(*overlapping(9, 10), 1), overlapping(5, 11)).k == 8
