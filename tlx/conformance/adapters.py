"""Low-rank adapters: what they add to a layer, how they train, and that the layer itself does not."""

from __future__ import annotations

import numpy as np
import pytest

from tlx.backend import Array, Backend, Hyper, Lora, ModelSpec, OptimizerSpec
from tlx.backend.lora import adapted_weights, adapter_names, merged
from tlx.conformance.subject import CLASSES, HEADS, Subject, assert_near, choose, exact, moved, refused, renewed

LINEAR = ("tiny-mlp", "mobilenet_v3_small", "resnet18")
# The scale is no whole number. Of convolutions, patterns choose some.
ON_LINEAR, ON_CONVOLUTIONS = Lora(2, 3.0), Lora(3, 4.0, ("conv1", "layer4.?.conv2"))


@pytest.fixture
def adapted(backend: Backend) -> Subject:
    """A float64 model whose adapters add something from the start."""
    name = choose(backend, LINEAR)
    return renewed(backend, name, ON_CONVOLUTIONS if name == "resnet18" else ON_LINEAR)


def plain_of(adapted: Subject) -> tuple[Subject, dict[str, Array]]:
    """The same model without adapters, with the values that these are merged into; and the values."""
    assert adapted.lora is not None
    plain, values = renewed(adapted.backend, adapted.name), merged(adapted.dump(), adapted.specs, adapted.lora.scale)
    plain.load(values)
    return plain, values


def adapters_of(subject: Subject) -> tuple[str, ...]:
    """The names of all A and B."""
    return tuple(spec.name for spec in subject.specs if spec.role == "adapter")


def test_adapters_lie_beside_the_weights_that_they_adapt(adapted: Subject) -> None:
    plain, _ = plain_of(adapted)
    shapes = {spec.name: spec.shape for spec in adapted.specs}
    weights = adapted_weights(adapted.specs)
    assert weights and tuple(spec for spec in adapted.specs if spec.role != "adapter") == plain.specs
    assert adapted.lora is not None
    rank, expected = adapted.lora.rank, dict[str, tuple[int, ...]]()
    for name in weights:
        out, *columns = shapes[name]
        a, b = adapter_names(name)
        expected |= {a: (rank, int(np.prod(columns))), b: (out, rank)}
    assert {name: shapes[name] for name in adapters_of(adapted)} == expected
    assert not {*weights} & {*adapted.head}


def test_adapters_add_their_scaled_product_to_the_weight(adapted: Subject) -> None:
    """In every pass: evaluation, training and what enters the head."""
    plain, _ = plain_of(adapted)
    ours, theirs = adapted.put(), plain.put()
    assert_near({"logits": adapted.logits(ours)}, {"logits": plain.logits(theirs)}, 1e-12)
    assert_near({"features": adapted.features(ours)}, {"features": plain.features(theirs)}, 1e-12)
    assert adapted.backward(ours)[0] == pytest.approx(plain.backward(theirs)[0], rel=1e-12)
    plain.load({name: adapted.start[name] for name in plain.start})  # it is not that they add nothing
    assert np.abs(plain.logits(theirs) - adapted.logits(ours)).max() > 1e-3


def test_adapters_that_are_zero_change_no_bit(adapted: Subject) -> None:
    seconds = {name: np.zeros_like(adapted.start[name]) for name in adapters_of(adapted) if name.endswith("_B")}
    adapted.load({**adapted.start, **seconds})
    plain, values = plain_of(adapted)
    assert all(values[name].tobytes() == adapted.start[name].tobytes() for name in values)
    assert adapted.logits(adapted.put()).tobytes() == plain.logits(plain.put()).tobytes()


def test_convolutions_have_adapters_of_their_flattened_weights(backend: Backend) -> None:
    if "resnet18" not in backend.capabilities().models:
        pytest.skip(f"backend {backend.name!r} does not offer resnet18")
    convolutional = renewed(backend, "resnet18", ON_CONVOLUTIONS)
    test_adapters_lie_beside_the_weights_that_they_adapt(convolutional)
    test_adapters_add_their_scaled_product_to_the_weight(convolutional)
    test_gradients_of_adapters_are_those_of_the_chain_rule(convolutional)


def test_gradients_of_adapters_are_those_of_the_chain_rule(adapted: Subject) -> None:
    """From the gradient G [out, in] to the merged weight: scale G A^T for B, and scale B^T G for A."""
    plain, _ = plain_of(adapted)
    of_plain = plain.gradients(plain.put())
    names = adapters_of(adapted)
    adapted.free((*names, *adapted.head))
    actual = adapted.gradients(adapted.put())
    assert adapted.lora is not None
    scale, expected = adapted.lora.scale, {name: of_plain[name] for name in adapted.head}
    for name in adapted_weights(adapted.specs):
        a, b = adapter_names(name)
        gradient = of_plain[name].reshape(len(of_plain[name]), -1)
        expected[a] = scale * adapted.start[b].T @ gradient
        expected[b] = scale * gradient @ adapted.start[a].T
    assert_near({name: actual[name] for name in expected}, expected)


def test_what_adapters_adapt_stays_as_it_is_to_the_bit(adapted: Subject) -> None:
    trains = (*adapters_of(adapted), *adapted.head)
    adapted.free(trains)
    optimizer = adapted.optimizer(OptimizerSpec("sgd", momentum=exact(0.9)), Hyper(exact(1e-3), exact(0.1)))
    for _ in range(2):
        adapted.step(optimizer, adapted.put())
    after = adapted.dump()
    assert moved(adapted.start, after, [spec.name for spec in adapted.specs if spec.name not in trains]) == []
    assert moved(adapted.start, after, trains) == list(trains)


def test_adapters_train_where_nothing_before_them_does(adapted: Subject) -> None:
    """No features are kept in front of them."""
    adapted.free((*adapters_of(adapted), *adapted.head))
    first = adapted_weights(adapted.specs)[0].rpartition(".")[0]
    assert all(first == path or first.startswith(f"{path}.") for path in adapted.backend.boundaries(adapted.model))


def test_a_pattern_that_matches_no_layer_is_refused(adapted: Subject) -> None:
    name, head = adapted.name, HEADS[adapted.name]
    nearest = adapted_weights(adapted.specs)[0].rpartition(".")[0]
    for pattern in (f"{nearest}x", head):  # the head trains whole
        with refused(pattern, name):
            spec = ModelSpec(name, CLASSES, head, lora=Lora(2, 3.0, (nearest, pattern)))
            adapted.backend.build(spec, "cpu", "float32")
