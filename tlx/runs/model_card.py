"""The card of a model: what the Hugging Face Hub shows of a finished run, as Markdown with the Hub's metadata."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tlx.backend import registry
from tlx.errors import printable
from tlx.manifest import CARD, RECIPE
from tlx.models.hub import HUB
from tlx.recipe import Recipe
from tlx.runs.export_code import model_code, resizing
from tlx.runs.export_source import Source
from tlx.runs.facts import parse_object
from tlx.runs.finished import read_run
from tlx.runs.folder import RESULT
from tlx.runs.hub_client import WEIGHTS

LISTED = 100  # classes that a card names
PUBLISHED = {"cifar10": "uoft-cs/cifar10"}  # data sets of tlx, by their names on the hub
PRIVATE = ("data", "data_root", "out", "log", "weights")  # they may name places on somebody's machine


FIGURES = {
    "test_accuracy": "test accuracy",
    "test_balanced_accuracy": "balanced test accuracy, the mean recall of the classes",
    "test_macro_f1": "macro F1 on the test part",
    "val_accuracy": "validation accuracy",
}
SEVERAL = {  # where several labels may apply to an image
    "test_average_precision": "mAP on the test part, the mean of the average precision over the classes",
    "test_micro_f1": "micro F1 on the test part",
    "test_macro_f1": FIGURES["test_macro_f1"],
    "val_average_precision": "mAP on the validation part",
}
METRICS = {  # of the Hub's metadata: a type, and a name
    "test_accuracy": ("accuracy", "test accuracy"),
    "test_balanced_accuracy": ("balanced_accuracy", "balanced accuracy"),
    "test_average_precision": ("mean_average_precision", "mAP"),
    "test_micro_f1": ("f1", "micro F1"),
    "test_macro_f1": ("f1", "macro F1"),
}


@dataclass(frozen=True, slots=True)
class Facts:
    """What a card says of a run, beside what code needs to load the model."""

    recipe: Recipe
    figures: Mapping[str, float | None]  # by their names in FIGURES, or in SEVERAL
    data: str
    parameters: int
    versions: Mapping[str, str]
    seconds: float


def read_facts(run_dir: Path) -> Facts:
    """Read what a finished run says of itself."""
    contents = read_run(run_dir)
    result = parse_object(contents[RESULT], str(run_dir / RESULT))
    card = parse_object(contents[CARD], str(run_dir / CARD))
    names = set(Recipe.__dataclass_fields__) - {"model", "head", "data", "log"}
    return Facts(
        Recipe.from_toml(run_dir / RECIPE, None, names, contents[RECIPE]),
        _figures(result),
        Path(str((card.get("data") or {}).get("name", "images"))).name or "images",
        int(_number(result.get("total_parameters")) or 0),
        {str(k): str(v) for k, v in (result.get("versions") or {}).items()},
        _number(result.get("wall_seconds")) or 0.0,
    )


def _figures(result: Mapping[str, Any]) -> dict[str, float | None]:
    if not isinstance(several := result.get("multilabel"), dict):
        return {name: _number(result.get(name)) for name in FIGURES}
    names = (name.split("_", 1) for name in SEVERAL)
    return {f"{part}_{name}": _number((several.get(part) or {}).get(name)) for part, name in names}


def _number(value: Any) -> float | None:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def card_text(name: str, source: Source, facts: Facts, timm: str, why: str) -> str:
    """Return the card.

    Args:
        name: of the repository.
        source: the run.
        facts: what its result says.
        timm: the model's name in timm, or "".
        why: what keeps timm from building it.
    """
    plain = source.plain
    data, title = _markdown(facts.data), _markdown(name.rpartition("/")[2])
    count = len(plain.classes) - LISTED
    more = f" and {count} more, which `config.json` lists" if count > 0 else ""
    lines = [
        "---",
        *_metadata(name, source, facts, timm),
        "---",
        "",
        f"# {title}",
        "",
        f"{_markdown(plain.model)}, adapted to {len(plain.classes)} classes of {data} with tlx.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {head} | {text} |" for head, text in _rows(source, facts)),
        "",
        "## Use it",
        "",
        *(_with_timm(name) if timm else _with_code(name, source, why)),
        "With tlx:",
        "",
        "```bash",
        f"tlx pull {name}",
        f"tlx predict {name.rpartition('/')[2]} photo.jpg",
        "```",
        "",
        f"A photo is prepared like this: {_markdown(resizing(source.framing))}; then normalised with the mean and the "
        "standard deviation of `config.json`.",
        "",
        *_thresholds(source),
        "## Training",
        "",
        *(f"- `{name}`: {_markdown(text)}" for name, text in _recipe(facts.recipe)),
        "",
        "## Classes",
        "",
        ", ".join(_markdown(cls) for cls in plain.classes[:LISTED]) + more,
        "",
    ]
    if not _metrics(facts):
        lines += ["The run had no test part, so no test accuracy is known.", ""]
    return "\n".join(lines)


def _metadata(name: str, source: Source, facts: Facts, timm: str) -> list[str]:
    """Return the lines of YAML; a text of JSON is one of YAML."""
    tags = ["image-classification", "transfer-learning", "tlx", *(["timm"] if timm else [])]
    dataset = PUBLISHED.get(facts.data)
    lines = [
        "# license: yours to choose, see https://huggingface.co/docs/hub/repositories-licenses",
        f"library_name: {'timm' if timm else 'pytorch'}",
        "pipeline_tag: image-classification",
        f"tags: {json.dumps(tags)}",
        *([f"datasets: {json.dumps([dataset])}"] if dataset else []),
    ]
    if metrics := _metrics(facts):
        lines += [
            "model-index:",
            f"- name: {_yaml(name.rpartition('/')[2])}",
            "  results:",
            "  - task:",
            "      type: image-classification",
            "    dataset:",
            f"      type: {_yaml(dataset or 'image-folder')}",
            f"      name: {_yaml(facts.data)}",
            "      split: test",
            "    metrics:",
            *(
                line
                for kind, name, value in metrics
                for line in (f"    - type: {kind}", f"      value: {value!r}", f"      name: {name}")
            ),
        ]
    return lines


def _metrics(facts: Facts) -> list[tuple[str, str, float]]:
    """Return the figures of the test part: type, name and value of each that is known."""
    known = ((name, facts.figures.get(name)) for name in METRICS)
    return [(*METRICS[name], value) for name, value in known if value is not None]


def _thresholds(source: Source) -> list[str]:
    if source.card.thresholds is None:
        return []
    of_each = ", ".join(
        f"{_markdown(name)} {least:.4f}"
        for name, least in [*zip(source.plain.classes, source.card.thresholds, strict=True)][:LISTED]
    )
    return [
        "Several classes may apply to an image. The probability of each is the sigmoid of its logit, and it is said to "
        f"apply from its threshold on: {of_each}. All thresholds are in `config.json`, in `tlx.card`.",
        "",
    ]


def _yaml(text: str) -> str:
    return json.dumps(printable(text), ensure_ascii=False)


def _rows(source: Source, facts: Facts) -> list[tuple[str, str]]:
    def share(value: float | None) -> str:
        return "not measured" if value is None else f"{value:.4f}"

    weights = facts.recipe.weights or ""
    start = weights if weights in ("imagenet", "none", "own") or weights.startswith(HUB) else "a file of the author's"
    return [
        *(({**FIGURES, **SEVERAL}[name], share(value)) for name, value in facts.figures.items()),
        ("parameters", f"{facts.parameters:,}"),
        ("input", f"{source.plain.size} x {source.plain.size} pixels, RGB"),
        ("weights it began with", _markdown(start)),
        ("strategy", f"{_markdown(facts.recipe.strategy_name)}, epochs: {facts.recipe.epochs}"),
        ("made with", _markdown(", ".join(f"{k} {v}" for k, v in facts.versions.items()) or f"tlx {version('tlx')}")),
    ]


def _recipe(recipe: Recipe) -> list[tuple[str, str]]:
    changed = ((f.name, getattr(recipe, f.name)) for f in recipe.changed() if f.name not in PRIVATE)
    return [(name, value.name if hasattr(value, "name") else str(value)) for name, value in changed] or [
        ("recipe", "the defaults")
    ]


def _with_timm(name: str) -> list[str]:
    return [
        "```python",
        "import timm",
        "",
        f'model = timm.create_model("{HUB}{name}", pretrained=True).eval()',
        "transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))",
        "```",
        "",
    ]


def _with_code(name: str, source: Source, why: str) -> list[str]:
    """Return the lines that load the model without timm."""
    exporter = registry.exporter("torch")
    code = model_code(exporter, source.plain, source.framing, source.card.preprocess, WEIGHTS, source.card.thresholds)
    return [
        f"timm does not build this model: {_markdown(why)}. After `hf download {name} --local-dir .`:",
        "",
        "```python",
        *code.rstrip("\n").split("\n"),
        "```",
        "",
    ]


def _markdown(text: str) -> str:
    """Write a text into Markdown as it is: no markup of its own, no HTML, one line."""
    return re.sub(r"([\\`*_{}\[\]<>|#&$~])", r"\\\1", printable(text))


def names_of(classes: Sequence[str]) -> list[str]:
    """Return class names as a config.json holds them."""
    return [printable(name) for name in classes]
