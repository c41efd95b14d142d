"""What a notebook shows: cells of a real kernel, executed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

RUN = (
    "result = tlx.run(backend='loopback', model='tiny-mlp', weights='none', data='digits', image_size=8, lr=0.05,"
    " augment='none', limit_train=200, limit_test=50, epochs=2)"
)


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> list[list[Any]]:
    """The outputs of each cell: a run, its result, a mistake in a recipe, a mistake after an import."""
    sources = ["import tlx\n" + RUN, "result", "tlx.run(epochs=0)", "tlx.load_model('nowhere')"]
    format4: Any = nbformat.v4  # not typed
    notebook = format4.new_notebook(cells=[format4.new_code_cell(source) for source in sources])
    folder: Path = tmp_path_factory.mktemp("notebook")
    client: Any = nbclient.NotebookClient(
        notebook, timeout=120, kernel_name="python3", allow_errors=True, resources={"metadata": {"path": str(folder)}}
    )
    updates: list[Any] = []
    client.on_cell_executed = None
    original = client.process_message

    def watched(message: Any, *rest: Any) -> Any:
        if message["msg_type"] == "update_display_data":
            updates.append(message["content"]["data"])
        return original(message, *rest)

    client.process_message = watched
    client.execute()
    return [updates, *(cell.outputs for cell in notebook.cells)]


def test_the_bar_moves_in_place_and_leaves_nothing_behind(cells: list[list[Any]]) -> None:
    shown = [update.get("text/html", "") for update in cells[0]]
    assert any("<progress" in html and "epoch 1/2 train" in html for html in shown) and shown[-1] == ""
    text = str(cells[1])
    assert "epoch 2/2" in text and "test accuracy" in text and "Traceback" not in text


def test_a_result_is_a_small_version_of_its_page(cells: list[list[Any]]) -> None:
    (output,) = cells[2]
    html = output["data"]["text/html"]
    assert html.startswith("<div") and html.endswith("</div>") and len(html) < 10_000 and html.count("<svg") == 2
    assert "of the test images are classified correctly" in html and html.count('src="data:image/png;base64,') == 3
    assert 'href="runs/digits-tiny-mlp-full-loopback-1/report.html"' in html
    assert output["data"]["text/plain"].startswith("<Result tiny-mlp full on loopback: test accuracy")


@pytest.mark.parametrize(
    ("cell", "line"),
    [
        (3, "RecipeError: epochs is 0; expected a finite number, at least 1"),
        (4, "RunNotFound: nowhere holds no finished run: recipe.toml is missing."),
    ],
)
def test_a_mistake_is_one_readable_line(cells: list[list[Any]], cell: int, line: str) -> None:
    (output,) = cells[cell]
    assert output["output_type"] == "error" and len(output["traceback"]) == 1
    assert output["traceback"][0].startswith(line)
