"""What a user of the Python interface sees: signatures, types, representations, errors."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest

import tlx
from tlx.errors import BackendUnavailable, DataNotFound, RunNotFound, TlxError, WeightsNotFound
from tlx.recipe import Recipe, RecipeFields, fields_affecting
from tlx.recipe_fields import FIELD_GROUPS
from tlx.strategy.built_in import STRATEGIES, StrategyName
from tlx.strategy.schedule import SCHEDULES, ScheduleName
from tlx.training.metrics import EpochEnded, Stepped

FIELDS: dict[str, Any] = {
    **{"backend": "loopback", "model": "tiny-mlp", "weights": "none", "data": "digits", "image_size": 8, "lr": 0.05},
    **{"augment": "none", "limit_train": 200, "limit_test": 20, "batch_size": 16, "epochs": 2, "quiet": True},
}


@pytest.fixture
def result(tmp_path: Path) -> tlx.Result:
    return tlx.run(**FIELDS, out=str(tmp_path / "run"))


@pytest.mark.parametrize("function", [tlx.run, tlx.plan, tlx.parity])
def test_a_call_shows_every_recipe_field_with_its_default(function: Any) -> None:
    parameters = inspect.signature(function).parameters
    for name, field in Recipe.__dataclass_fields__.items():
        assert parameters[name].default == field.default and parameters[name].annotation == field.type


def test_the_keywords_that_an_editor_completes_are_the_recipes_fields() -> None:
    expected = {name: hint for name, hint in get_type_hints(Recipe).items() if name in Recipe.__dataclass_fields__}
    assert get_type_hints(RecipeFields) == expected


def test_the_names_that_an_editor_completes_are_those_that_exist() -> None:
    assert get_args(StrategyName) == tuple(STRATEGIES)
    assert get_args(ScheduleName) == tuple(SCHEDULES)


def test_every_field_says_what_it_is_and_what_it_affects() -> None:
    for name, field in Recipe.__dataclass_fields__.items():
        assert field.metadata["help"] and field.metadata["group"] in FIELD_GROUPS, name
    assert {*fields_affecting("result", "speed", "place")} == {*Recipe.__dataclass_fields__}
    assert fields_affecting("speed") == ("workers", "feature_cache", "save_seconds")


def test_what_is_printed_fits_one_line(result: tlx.Result) -> None:
    assert repr(result) == (
        f"<Result tiny-mlp full on loopback: test accuracy {result.test_accuracy:.4f}, {result.run_dir}>"
    )
    assert repr(tlx.Recipe(strategy="diff_lr", epochs=5)) == "Recipe(strategy='diff_lr', epochs=5)"
    assert repr(tlx.Recipe()) == "Recipe()"
    assert repr(tlx.Recipe(data=np.zeros((3, 8, 8)))) == "Recipe(data=<ndarray>)"
    assert "\n" not in repr(tlx.load_data("digits")) and len(repr(tlx.load_data("digits"))) < 200


def test_what_a_notebook_shows_is_a_small_table_that_no_name_can_break(result: tlx.Result) -> None:
    recipe = tlx.Recipe(data="a<script>alert(1)</script>.csv", epochs=5)
    plan = tlx.plan(backend="loopback", model="tiny-mlp", strategy="diff_lr")
    tables: list[Any] = [recipe, plan, tlx.load_data("digits")]
    for shown in tables:
        html = shown._repr_html_()
        assert html.startswith("<table") and html.endswith("</table>") and "<script" not in html
        assert html.count("<tr>") <= 30
    html = replace(result, strategy="<script>alert(1)</script>\u202e")._repr_html_()
    assert html.startswith("<div") and html.endswith("</div>") and "<script" not in html and "\u202e" not in html
    assert f"{100 * result.test_accuracy:.1f}\u00a0%" in html


def test_the_plan_of_a_recipe_is_a_table_made_before_anything_is_read() -> None:
    plan = tlx.plan(backend="loopback", model="tiny-mlp", strategy="diff_lr", data="nowhere", lr=0.5)
    assert [(row.group, row.lr) for row in plan.rows] == [("backbone", 1e-4), ("head", 0.5)]
    assert "backbone" in repr(plan) and "0.5" in repr(plan)
    assert plan.to_dict()["rows"][1]["epoch"] == 1
    frozen = tlx.plan({"backend": "loopback", "model": "tiny-mlp"}, strategy="feature_extract").rows[0]
    assert (frozen.group, frozen.lr) == ("backbone", None)


def test_a_listener_hears_the_run_and_cannot_end_it(tmp_path: Path) -> None:
    events: list[Any] = []
    quiet = tlx.run(**FIELDS, out=str(tmp_path / "a"), on_event=events.append)
    assert sum(isinstance(event, EpochEnded) for event in events) == 2
    assert any(isinstance(event, Stepped) for event in events)

    def broken(event: Any) -> None:
        raise KeyError("tracker is down")

    with pytest.warns(RuntimeWarning, match="on_event raised KeyError: 'tracker is down'; the run goes on without it"):
        deaf = tlx.run(**FIELDS, out=str(tmp_path / "b"), on_event=broken)
    assert deaf.test_accuracy == quiet.test_accuracy


def test_a_model_is_loaded_with_its_classes_and_preprocessing(result: tlx.Result) -> None:
    module = tlx.load_model(result.run_dir)
    assert module.classes == tuple("0123456789")
    assert module.preprocess(np.full((2, 3, 8, 8), 255, np.uint8)).shape == (2, 3, 8, 8)
    assert all(np.array_equal(array, result.model.arrays[name]) for name, array in module.arrays.items())
    assert module.preprocess(np.zeros((2, 3, 12, 9), np.uint8)).shape == (2, 3, 8, 8)
    with pytest.raises(TlxError, match=r"images are uint8 \[2, 9, 9, 3\]; expected uint8 \[N, 3, h, w\]"):
        module.preprocess(np.zeros((2, 9, 9, 3), np.uint8))


@pytest.mark.parametrize(
    ("call", "kinds"),
    [
        (lambda: tlx.run(epochs=0), (ValueError,)),
        (lambda: tlx.run(**{**FIELDS, "data": "nowhere"}), (ValueError, FileNotFoundError, DataNotFound)),
        (lambda: tlx.run(**{**FIELDS, "weights": "nowhere.safetensors"}), (FileNotFoundError, WeightsNotFound)),
        (lambda: tlx.run(**{**FIELDS, "weights": "nowhere.pth"}), (FileNotFoundError, WeightsNotFound)),
        (lambda: tlx.load_model("nowhere"), (FileNotFoundError, RunNotFound)),
        (lambda: tlx.evaluate("nowhere"), (FileNotFoundError, RunNotFound)),
        (lambda: tlx.predict("nowhere", "x.jpg"), (FileNotFoundError, RunNotFound)),
        (lambda: tlx.run(resume="nowhere"), (FileNotFoundError, RunNotFound)),
    ],
)
def test_errors_are_what_python_users_catch(call: Any, kinds: tuple[type, ...]) -> None:
    with pytest.raises(TlxError) as caught:
        call()
    assert isinstance(caught.value, kinds) and all(isinstance(caught.value, kind) for kind in kinds)
    assert "\n" not in str(caught.value)


def test_an_error_carries_its_fix_also_through_a_pickle() -> None:
    import pickle

    error = BackendUnavailable("Backend 'x' is not installed", fix="pip install x")
    assert isinstance(error, ImportError) and str(error) == "Backend 'x' is not installed. Fix: pip install x"
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.fix, again.problem) == (str(error), error.fix, error.problem)
    assert error._render_traceback_() == ["BackendUnavailable: Backend 'x' is not installed. Fix: pip install x"]


def test_functions_are_called_what_they_are_called() -> None:
    assert [tlx.run.__name__, tlx.evaluate.__name__, tlx.predict.__name__] == ["run", "evaluate", "predict"]
    assert tlx.__version__ and tlx.errors.TlxError is TlxError
    with pytest.raises(AttributeError, match=r"no attribute 'load'\. Did you mean 'load_data' or 'load_model'"):
        _ = tlx.load
