"""The conformance suite on a Vision Transformer, Swin and ConvNeXt, without its tests of BatchNorm and dropout."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.backends import FRAMEWORKS, each_backend
from support.tiny_zoo import NAMES, TINY, tiny_models
from tlx.backend import Backend, Lora
from tlx.backend.registry import load
from tlx.conformance import suite

pytestmark = pytest.mark.needs(*FRAMEWORKS)

LEFT_OUT = (
    # They look at running statistics.
    *("test_a_batch_is_normalised_by_its_mean_and_biased_variance", "test_only_the_named_modules_adapt"),
    *("test_batch_statistics_of_one_sample_are_refused_not_nan", "test_the_running_variance_takes_the_unbiased_one"),
    *("test_features_stop_where_they_are_asked_to", "test_loading_is_strict_and_names_both_sides"),
    *("test_no_boundary_lies_behind_what_trains_or_adapts", "test_parameters_come_first_and_have_roles"),
    *("test_normalisation_adds_float32_of_1e_5_to_the_variance", "test_unknown_names_are_refused"),
    *("test_running_statistics_keep_exactly_float32_of_nine_tenths", "test_every_parameter_is_in_exactly_one_group"),
    "test_statistics_adapt_while_the_affine_part_is_frozen",
    # They look at dropout before the head.
    *("test_dropout_takes_the_masks_of_the_core", "test_dropout_reaches_the_gradients"),
    *("test_dropout_repeats_for_a_key_and_differs_between_keys", "test_the_average_of_another_model_is_refused"),
    "test_dropout_rests_in_evaluation_and_away_from_what_trains",
    # They choose a model for themselves.
    *("test_capabilities_name_what_the_backend_can_do", "test_specs_describe_what_is_dumped"),
    *("test_unknown_model_or_head_is_refused", "test_two_models_share_nothing", "test_a_run_repeats_bit_for_bit"),
    *("test_values_come_back_bit_for_bit", "test_convolutions_have_adapters_of_their_flattened_weights"),
)
SAMPLE = (
    *("test_load_and_dump_copy", "test_what_is_frozen_does_not_move", "test_accumulated_parts_equal_the_whole_batch"),
    *("test_gradients_are_the_slopes_of_the_mean_loss", "test_a_sample_is_evaluated_independently_of_its_batch"),
    *("test_features_are_what_enters_the_head", "test_a_batch_can_begin_where_the_model_begins_to_train"),
    *("test_evaluation_changes_nothing", "test_float32_stays_float32_and_near_float64"),
    "test_adapters_add_their_scaled_product_to_the_weight",
)
OF_PROCESSES = "tlx.conformance.processes"  # tests that take a backend, and networks of their own
globals().update(
    {
        name: test
        for name, test in vars(suite).items()
        if name.startswith("test_") and name not in LEFT_OUT and test.__module__ != OF_PROCESSES
    }
)


@pytest.fixture(scope="module", autouse=True)
def known() -> Iterator[None]:
    with tiny_models(drop=0.0), pytest.MonkeyPatch.context() as patch:
        for arch in TINY:
            patch.setitem(suite.HEADS, arch.name, arch.head)
        yield


@pytest.fixture(params=each_backend(*FRAMEWORKS), scope="module")
def backend(request: pytest.FixtureRequest) -> Backend:
    return load(request.param)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Try each test on each network; most of that is thorough, and a sample is on the first network alone."""
    sampled = metafunc.function.__name__ in SAMPLE
    networks = [
        name if sampled and name == "tiny_vit" else pytest.param(name, marks=pytest.mark.thorough) for name in NAMES
    ]
    metafunc.parametrize("built", networks, indirect=True, scope="module")


@pytest.fixture(scope="module")
def built(request: pytest.FixtureRequest, backend: Backend, known: None) -> suite.Subject:
    return suite.Subject(backend, request.param)


@pytest.fixture
def subject(built: suite.Subject) -> suite.Subject:
    built.load(built.start)
    built.free()
    return built


@pytest.fixture
def dropper(subject: suite.Subject) -> suite.Subject:
    return subject


@pytest.fixture
def adapted(built: suite.Subject) -> suite.Subject:
    return suite.renewed(built.backend, built.name, Lora(2, 3.0))
