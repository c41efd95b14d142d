"""Write docs/tutorials/*.md and the tutorials' part of docs/results.md: `python docs/make_tutorials.py`.

The pages show the scripts of examples/ themselves, and what `--publish` has put into docs/tutorials/: results and
pictures. A test compares what this returns with the files, so no page can fall behind its script or its results.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import runpy
import statistics
import sys
import textwrap
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
EXAMPLES, PAGES = HERE.parent / "examples", HERE / "tutorials"
RESULTS = HERE / "results.md"
START, END = "<!-- tutorials: written by docs/make_tutorials.py -->", "<!-- end of the tutorials -->"

# Of each: which functions of the script are tlx's way and which is the way by hand.
TUTORIALS = {
    "cifar10": (("method", "runs"), "by_hand"),
    "ants_and_bees": (("runs",), "by_hand"),
    "own_network": (("giant", "runs"), "by_hand"),
    "data_size": (("runs",), "by_hand"),
    "embeddings": (("runs", "show"), "by_hand"),
}
# Estimates, none of them measured: from 31 images a second that PyTorch trains at 224 px on 2 idle cores (50,000
# images, 3 epochs, 80 minutes), 5 that OneFlow does, and 100 and 15 whose features they compute.
HOURS = {"cifar10": "8 hours", "ants_and_bees": "4 hours", "own_network": "an hour", "data_size": "2 hours"}
PORTING = "porting/5_your_own_loop"
WHOLE_WORDS: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
PICTURES = {
    "answers": "What the run takes twelve test images for; the frame of a mistake has another colour.",
    "batch": "Photos of the training part, with their labels.",
    "six": "Six photos that were read once, and what the fixed extractor takes them for.",
    "own": "A photo that is of neither class, and gets one of the two all the same; `--photo` takes your own.",
    "photos": "32 photos of the training part.",
    "curves": "The validation accuracy of both networks by epoch.",
    "sizes": "The test accuracy of each strategy by the number of images.",
    "neighbours": "Two images, and the ones whose vectors have the nearest directions.",
    "map": "The vectors on a plane (t-SNE), by class.",
}


def pages() -> dict[Path, str]:
    """Return all files that this writes, with what they are to hold."""
    files = {PAGES / f"{name}.md": page(name) for name in TUTORIALS}
    files[PAGES / "porting.md"] = porting_page()
    before, _, rest = RESULTS.read_text(encoding="utf-8").partition(START)
    files[RESULTS] = before + START + "\n" + results() + END + rest.partition(END)[2]
    return files


def docstring(name: str) -> tuple[str, str]:
    """Return the title of a script, without its full stop, and the rest of what it says about itself."""
    text = ast.get_docstring(ast.parse((EXAMPLES / f"{name}.py").read_text(encoding="utf-8"))) or ""
    title, _, rest = text.partition("\n")
    paragraphs = [part for part in rest.strip().split("\n\n") if not part.startswith("    ")]
    return title.rstrip("."), "\n\n".join(paragraphs)


def page(name: str) -> str:
    """Return the page of a tutorial."""
    title, text = docstring(name)
    ours, theirs = TUTORIALS[name]
    parts = [f"# {title}\n", "<!-- Written by docs/make_tutorials.py. Do not edit. -->\n", text + "\n"]
    parts.append(tabs(name, ours, theirs))
    small = published(name, "small")
    if small is not None:
        real = "" if small["real"] else ", without the real data"
        parts.append(f"## What it shows\n\n`python examples/{name}.py`, the small form{real}:\n")
        parts.append("```text\n" + "\n".join(small["printed"]).strip("\n") + "\n```\n")
        parts += pictures(name, "small")
    whole = published(name, "whole")
    parts.append("## The whole job\n")
    if whole is None:
        parts.append(
            f"`python examples/{name}.py --whole` does it; its results are not published yet. On 2 idle cores it\n"
            f"takes about {HOURS.get(name, '2 minutes')}: an estimate from the rates at which ResNet-18 trains at 224\n"
            "pixels (31 images a second on PyTorch, 5 on OneFlow), not measured yet.\n"
        )
    else:
        took = sum(row.get("seconds", 0) for row in whole["rows"])
        parts.append(f"`python examples/{name}.py --whole`:\n")
        parts.append("```text\n" + "\n".join(whole["printed"]).strip("\n") + "\n```\n")
        parts.append(f"These runs took {took / 3600:.1f} hours one by one, most with another beside them on 2 cores.\n")
        parts += filter(None, [to_do(name, whole["rows"])])
        parts += pictures(name, "whole")
    parts.append(
        "The command may be stopped and repeated; `--only PATTERN` does a part, `--list` says what is done, and\n"
        "`--publish` brings the results here. Every figure with its command: [results](../results.md).\n"
    )
    return "\n".join(parts)


def pictures(name: str, form: str) -> list[str]:
    """Return the pictures that a form of a tutorial has published, each with what it shows."""
    found = sorted((PAGES / "pictures").glob(f"{name}-{form}-*"))
    said = [PICTURES[picture.stem.rpartition("-")[2]] for picture in found]
    return [f"![{text}](pictures/{picture.name})\n\n{text}\n" for picture, text in zip(found, said, strict=True)]


def tabs(name: str, ours: tuple[str, ...], theirs: str) -> str:
    """Return the three tabs: with tlx in Python, on the command line, and what it replaces."""
    script = f"../../examples/{name}.py"
    included = "\n".join(f"```{{literalinclude}} {script}\n:pyobject: {function}\n```" for function in ours)
    shown = "\n".join(commands(name)) or "This one holds Python objects."
    return "\n".join(
        [
            "::::{tab-set}",
            f":::{{tab-item}} Python\n{included}\n:::",
            f":::{{tab-item}} Command line\n```bash\n{shown}\n```\n:::",
            f":::{{tab-item}} By hand\n```{{literalinclude}} {script}\n:pyobject: {theirs}\n```\n:::",
            "::::\n",
        ]
    )


@cache
def listed(name: str) -> list[tuple[str, str]]:
    """Return label and command of each run of the whole form, as `--list` prints them."""
    before = sys.argv, sys.path[:]
    sys.argv, sys.path = [name, "--whole", "--list", "--out", "runs"], [str(EXAMPLES), *sys.path]
    try:
        with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
            runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    finally:
        sys.argv, sys.path = before
    lines = (line.partition(" ") for line in printed.getvalue().splitlines())
    return [(label, rest) for label, _, rest in lines]


def commands(name: str) -> list[str]:
    """Return the commands of the whole form, the first seed of each."""
    shown: dict[str, None] = {}
    for label, command in listed(name):
        _, at, options = command.partition("tlx ")
        if at and label.partition(".")[2] in ("", "0"):
            shown[
                textwrap.fill("tlx " + options, 112, subsequent_indent="    ", **WHOLE_WORDS).replace("\n", " \\\n")
            ] = None
    return list(shown)


def to_do(name: str, rows: list[dict[str, Any]]) -> str:
    """Say which runs of the whole form are not published yet, or nothing."""
    done = {row["label"] for row in rows}
    missing = dict.fromkeys(label.partition(".")[0] for label, _ in listed(name) if label not in done)
    return f"Not done yet: {', '.join(f'`{label}`' for label in missing)}.\n" if missing else ""


def porting_page() -> str:
    """Return the page of the porting tutorials."""
    title, text = docstring(PORTING)
    script = f"../../examples/{PORTING}.py"
    rows = (EXAMPLES / "porting" / "README.md").read_text(encoding="utf-8").partition("\n| |")[2]
    return "\n".join(
        [
            "# Porting, and the proof of it\n",
            "<!-- Written by docs/make_tutorials.py. Do not edit. -->\n",
            "Scripts that print what they do, need no network connection, and end with a proof:\n",
            "| |" + rows,
            f"## {title.partition('. ')[2] or title}\n\n{text}\n",
            "::::{tab-set}",
            f":::{{tab-item}} Python\n```{{literalinclude}} {script}\n:pyobject: main\n```\n:::",
            ":::{tab-item} Command line\n```bash\ntlx parity --strategy full --image-size 32 --quick\n```\n:::",
            f":::{{tab-item}} By hand\n```{{literalinclude}} {script}\n:pyobject: train\n```\n:::",
            "::::\n",
        ]
    )


def published(name: str, form: str) -> dict[str, Any] | None:
    """Return what a form of a tutorial has published."""
    file = PAGES / "results" / f"{name}-{form}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def results() -> str:
    """Return every figure of the tutorials with its command, machine, versions, date and spread over seeds."""
    parts = [
        "## Tutorials\n",
        "Of several seeds: mean ± sample standard deviation. `$DATA` is as below. A row of the small form says that\n"
        "the script works and no more; where an accuracy is the best epoch's on the part that it is of, it is a\n"
        "choice and no test, and the row says so. A row without a command is a loop by hand in its section's script.\n"
        "Most runs of the whole forms had others beside them on 2 cores, so their seconds do not measure speed.\n",
    ]
    for name in TUTORIALS:
        for form in ("whole", "small"):
            found = published(name, form)
            if found is None or not found["real"] or not groups(found["rows"]):
                continue
            option = " --whole" if form == "whole" else ""
            parts.append(f"### {docstring(name)[0]}: `python examples/{name}.py{option}`\n")
            parts.append(facts(found["rows"]))
            parts.append("| | accuracy | seeds | seconds | command |\n|---|---|---|---|---|")
            parts += [row(label, rows) for label, rows in groups(found["rows"]).items()]
            parts.append("")
    return "\n".join(parts) + "\n"


def facts(rows: list[dict[str, Any]]) -> str:
    """Return machines, dates and versions of some rows."""
    machines, dates = sorted({row["machine"] for row in rows}), sorted({row["date"] for row in rows})
    versions: dict[str, str] = {}
    for one in rows:
        versions |= one.get("versions", {})
    named = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    between = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    chosen = {one["precision"] for one in rows if "precision" in one and "--precision" not in one["command"]}
    precision = f" Where a command names no precision, it was {' or '.join(sorted(chosen))}." if chosen else ""
    return f"{'; '.join(machines)}; {between}; {named}.{precision}\n"


def groups(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the rows that have an accuracy by their labels without seeds."""
    found: dict[str, list[dict[str, Any]]] = {}
    for one in rows:
        if "accuracy" in one:
            found.setdefault(one["label"].partition(".")[0], []).append(one)
    return found


def row(label: str, rows: list[dict[str, Any]]) -> str:
    """Return the row of one group."""
    values = [one["accuracy"] for one in rows]
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    chosen = "" if rows[0].get("tested", True) else " (a choice)"
    seconds = statistics.mean(one["seconds"] for one in rows)
    command = f"`{rows[0]['command']}`" if rows[0]["command"] else ""
    return f"| {label} | {statistics.mean(values):.4f}{spread}{chosen} | {len(values)} | {seconds:,.0f} | {command} |"


if __name__ == "__main__":
    for file, text in pages().items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
