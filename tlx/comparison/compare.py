"""Run all that is to be compared, choose by validation, and say how the chosen do on the test part."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from rich.cells import cell_len

from tlx.atomic import write_atomic
from tlx.backend.threads import cores
from tlx.comparison.cells import joined
from tlx.comparison.choice import Entry, PairedTest, entries_of, paired_tests, rank, with_test
from tlx.comparison.commands import holds_objects, printed, run_arguments
from tlx.comparison.drive import run_cells
from tlx.comparison.jobs import read_parameters
from tlx.comparison.plan import Grid, Plan, make_plan, recipe_file, vars_of
from tlx.comparison.ray import PARAMETERS as RAY
from tlx.comparison.ray import Ray, run_by_tasks
from tlx.comparison.resampling import NAMES, By
from tlx.comparison.shots import ShotsCurve, curve_rows, shots_curves
from tlx.comparison.slurm import PARAMETERS as SLURM
from tlx.comparison.slurm import Slurm, run_by_jobs
from tlx.comparison.statistics import LEVEL
from tlx.comparison.testing import read_tests, unread_choice
from tlx.console import styled
from tlx.data import Data
from tlx.errors import RecipeError, as_html, closest, printable, shown
from tlx.recipe import Recipe, RecipeFields
from tlx.runs.display import Display
from tlx.runs.folder import writing
from tlx.runs.interrupt import Stop, interruptible
from tlx.runs.job import recipe_to_run
from tlx.runs.scores import MEANS
from tlx.training.build import open_data

if TYPE_CHECKING:
    from typing_extensions import Unpack

PAGE = "compare.html"
Place = Literal["here", "slurm", "ray"]
MOST = 1000  # jobs on a cluster


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Comparison:
    """What `tlx.compare` returns: the candidates, the best first, and what was chosen among them."""

    folder: Path
    entries: tuple[Entry, ...]
    tests: tuple[PairedTest, ...]
    notes: tuple[str, ...]
    problems: dict[str, str] = field(default_factory=dict)  # what failed: a cell's name, and one line
    by: By = "accuracy"  # the mean on the validation part by which was chosen

    @property
    def best(self) -> Entry | None:
        """The candidate with the highest mean on the validation part; None where none is whole."""
        return next((entry for entry in self.entries if entry.best), None)

    @property
    def run_dir(self) -> Path | None:
        """The run of the best candidate that did best on the validation part, of its seeds."""
        if self.best is None:
            return None
        pairs = zip(self.best.outcomes, self.best.candidate.cells, strict=True)
        return max(pairs, key=lambda pair: (getattr(pair[0], f"val_{self.by}") or 0, -(pair[0].val_loss or 0)))[
            1
        ].run_dir

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """Return the heads and the cells of the table: a row for each candidate."""
        fields = list(dict.fromkeys(name for entry in self.entries for name, _ in entry.candidate.grid))
        names = ["choice", "strategy", "model", "backend", "shots"]
        heads = [*names, *fields, "seeds", *self._parts("val"), "seconds", "val/s", *self._parts("test")]
        return heads, [self._row(entry, fields) for entry in self.entries]

    def table(self) -> str:
        """Return the table as text, none of it cut; a name that all rows share stands above it."""
        heads, rows = self.rows()
        lines = [heads, *rows]
        same = [at for at in (1, 2, 3, 4) if len({row[at] for row in rows}) == 1]
        kept = [at for at in range(len(heads)) if at not in same]
        above = ", ".join(f"{heads[at]} {rows[0][at]}" for at in same if rows[0][at] != "-")
        text = [*([above] if above else []), *_aligned([[line[at] for at in kept] for line in lines])]
        if curves := self.curves():
            heads, rows = curve_rows(curves)
            text += ["", *_aligned([heads, *rows]), ""]
        return "\n".join(text)

    def curves(self) -> list[ShotsCurve]:
        """Return accuracy by the number of training images of a class; none unless several numbers were compared."""
        return shots_curves(self.entries)

    def _row(self, entry: Entry, fields: Sequence[str]) -> list[str]:
        arm, values = entry.candidate.arm, dict(entry.candidate.grid)
        mark = "best" if entry.best else "chosen" if entry.chosen else ""
        return [
            mark,
            *(printable(text) for text in (arm.strategy, arm.model, arm.backend)),
            "-" if arm.shots is None else str(arm.shots),
            *(printable(printed(values[name])) if values.get(name) is not None else "-" for name in fields),
            f"{entry.finished}/{len(entry.outcomes)}",
            *self._figures(entry, "val"),
            "-" if entry.seconds is None else f"{entry.seconds:.1f}",
            "-" if entry.per_second is None else f"{entry.per_second:.3g}",
            *self._figures(entry, "test"),
        ]

    def _parts(self, part: str) -> list[str]:
        return [f"{part} mAP"] if self.by == "average_precision" else [part, f"{part} balanced", f"{part} macro F1"]

    def _figures(self, entry: Entry, part: str) -> list[str]:
        mean = _figure(getattr(entry, f"{part}_score"), getattr(entry, f"{part}_spread"))
        means = () if self.by == "average_precision" else MEANS
        return [mean, *(_figure(getattr(entry, f"{part}_{name}"), None) for name in means)]

    def sentences(self) -> list[str]:
        """Return what is to be said below the table, a line each."""
        lines = [*self.notes]
        if self.best is None:
            lines.append("nothing was chosen: no candidate has all of its seeds")
        for test in self.tests:
            arm, of = " ".join(vars_of(test.arm)), "" if test.by == "accuracy" else f" of {NAMES[test.by]}"
            line = (
                f"best against {arm}: {100 * test.difference:+.2f} points{of} on the test part, {LEVEL:.0%} interval "
                f"{100 * test.low:+.2f} to {100 * test.high:+.2f}"
            )
            if test.exact is not None:
                line += (
                    f"; of {test.images} images {test.best_alone} are right by the best alone and {test.other_alone} "
                    f"by the other alone: McNemar p {test.exact:.3g}, mid-p {test.mid_p:.3g}, by Holm {test.holm:.3g}"
                )
            lines.append(line)
        if any(test.exact is None for test in self.tests):
            lines.append("McNemar's test counts images that are right or wrong, so with several labels there is none")
        if any(point.low is None for curve in self.curves() for point in curve.points):
            lines.append("one draw of the images has no interval; several have, with seeds 5")
        lines += [f"failed: {name}: {problem}" for name, problem in self.problems.items()]
        if self.run_dir is not None:
            lines.append(f"use the best with: tlx predict {shlex.quote(str(self.run_dir))} PHOTO")
        return [printable(line) for line in lines]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "folder": str(self.folder),
            "best": None if self.run_dir is None else str(self.run_dir),
            "candidates": [_entry_dict(entry) for entry in self.entries],
            "by": self.by,
            "curves": [curve.to_dict() for curve in self.curves()],
            "tests": [{**asdict(test), "arm": asdict(test.arm)} for test in self.tests],
            "notes": list(self.notes),
            "problems": self.problems,
        }

    def __repr__(self) -> str:
        best = "nothing chosen" if self.best is None else f"best {' '.join(vars_of(self.best.candidate.arm))}"
        return printable(f"<Comparison of {len(self.entries)} candidates: {best}, {self.folder}>")

    def _repr_html_(self) -> str:
        heads, rows = self.rows()
        head = "".join(f"<th>{as_html(name)}</th>" for name in heads)
        body = "".join("<tr>" + "".join(f"<td>{as_html(text)}</td>" for text in row) + "</tr>" for row in rows[:30])
        return f"<table><caption>Comparison</caption><tr>{head}</tr>{body}</table>"


def compare(
    recipe: Recipe | RecipeFields | Mapping[str, Any] | str | Path | None = None,
    *,
    strategies: Sequence[Any] | str | None = None,
    backends: Sequence[str] | str | None = None,
    models: Sequence[Any] | str | None = None,
    seeds: int = 1,
    grid: Grid | None = None,
    shots: Sequence[int] | str | None = None,
    by: By | None = None,
    jobs: int = 1,
    on: Place = "here",
    slurm: Mapping[str, Any] | None = None,
    ray: Mapping[str, Any] | None = None,
    quiet: bool = False,
    **fields: Unpack[RecipeFields],
) -> Comparison:
    """Train every combination, choose by validation, and read the test part for what was chosen.

    Each cell is a run of its own, below `out`, and leaves the test part unread. For each strategy, model and backend
    the values of the grid are chosen that have the highest mean validation figure over the seeds, and the best of
    these is the best of all. Then the test part is read, once for each cell that was chosen.

    The same call goes on where an earlier one was stopped, or killed: what is finished stays, what was interrupted is
    resumed. Any number of processes may call it at the same time, and share the work.

    Args:
        recipe: what all cells have in common. Default: the CIFAR-10 tutorial's job.
        strategies: names, strategies of your own, or "all"; default: that of the recipe.
        backends: names; default: that of the recipe.
        models: names, or modules of your own; default: that of the recipe.
        seeds: how many, from the recipe's own on. A seed decides the order of the images, the augmentation, the head's
            first values, and which images are held out.
        grid: fields of the recipe, each with values to try. One that a strategy does not have is left out there.
        shots: numbers of training images of each class, each a column of its own: a seed draws the same images for
            all that is compared, those of a smaller number among those of a larger one.
        by: the figure of the validation part that chooses: accuracy (the default), balanced_accuracy or macro_f1; where
            several labels may apply to an image, average_precision, which is mAP.
        jobs: how many cells run at the same time, each with its share of the cores; on Slurm, how many jobs there are.
        on: "here", "slurm" or "ray": jobs there run the cells, and this process waits and reads the test part.
        slurm: parameters of these jobs: partition, time (minutes), memory (gigabytes), gpus, cpus and others.
        ray: what each cell gets of the Ray cluster: cpus (1), gpus (0; with device="cuda" 1), memory (gigabytes).
        quiet: show nothing on stderr.
        **fields: recipe fields, which replace those of `recipe`; `out` is the folder of the comparison.

    Raises:
        RecipeError: a name is unknown, a value is wrong, or a field of the grid changes nothing.
        DataError: the data cannot be read.
        KeyboardInterrupt: a signal stopped the comparison; the text says how to go on.
    """
    plan = make_plan(recipe_to_run(recipe, fields), strategies, backends, models, seeds, grid, shots)
    return drive(plan, jobs, quiet, by, on, slurm, ray)


def drive(
    plan: Plan,
    jobs: int = 1,
    quiet: bool = False,
    by: By | None = None,
    on: Place = "here",
    slurm: Mapping[str, Any] | None = None,
    ray: Mapping[str, Any] | None = None,
) -> Comparison:
    """Run what a plan holds, and say what it comes to."""
    if by is not None and by not in get_args(By):
        raise RecipeError(f"by is {shown(by)}.{closest(str(by), get_args(By))}")
    first, display = plan.cells[0].recipe, Display(quiet)
    parameters = _parameters(on, jobs, slurm or {}, ray or {})
    if on != "here" and holds_objects(first):
        raise RecipeError(f"data, model or head is a Python object, which no job on {on} has", fix="leave out on")
    if jobs > 1 and holds_objects(first):
        raise RecipeError("data, model or head is a Python object, which only this process has", fix="use jobs=1")
    queue = Slurm(plan, parameters) if on == "slurm" else None
    data = open_data(first)  # a mistake in it is said once, and not by every cell
    by = _by_of(data, by)
    if data.val is None:
        raise RecipeError("compare chooses by the validation part, but there is none", fix="raise val_fraction")
    cluster = Ray(parameters) if on == "ray" else None
    with interruptible() as stop:
        saved = f"stopped; what was done is saved in {plan.folder}. Go on with: {stop.command}"
        stop.at(saved)
        display.say(f"{len(plan.cells)} cells in {plan.folder}")
        display.notes(plan.notes)
        with joined(plan):
            with _status(display) as show:
                if cluster is not None:
                    outcomes = run_by_tasks(plan, cluster, jobs, display.say, show)
                elif queue is None:
                    outcomes = run_cells(plan, jobs, display.say, show)
                else:
                    outcomes = run_by_jobs(plan, queue, jobs, display.say, show, partial(_leave, stop))
                    stop.at(saved)
            entries = entries_of(plan.candidates, outcomes, by)
            has_test = data.test is not None
            answers, unread = read_tests(plan, entries, display.say) if has_test else ({}, {})
            tested = with_test(entries, answers)
            notes = _notes(plan, answers, has_test)
            comparison = _finished(plan, tested, paired_tests(tested, answers, by), unread, notes, by)
            write_page(comparison)
        return comparison


def _parameters(on: Any, jobs: Any, slurm: Mapping[str, Any], ray: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of the jobs; raises RecipeError where they, their number or their place are wrong."""
    if on not in get_args(Place):
        raise RecipeError(f"on is {shown(on)}.{closest(str(on), get_args(Place))}")
    most = max(64, len(cores())) if on == "here" else MOST
    if type(jobs) is not int or not 1 <= jobs <= most:
        what = "cells at the same time on this machine" if on == "here" else f"jobs on {on}"
        raise RecipeError(f"jobs is {shown(jobs)}; expected a whole number from 1 to {most:,}: {what}")
    for engine, values in (("slurm", slurm), ("ray", ray)):
        if values and on != engine:
            where = "run here" if on == "here" else f"run on {on}"
            raise RecipeError(f"there are parameters for {engine}, but the cells {where}", fix=f"say on {engine}")
    values, known = (ray, RAY) if on == "ray" else (slurm, SLURM)
    return read_parameters(str(on), known, values)


def _by_of(data: Data, by: By | None) -> By:
    """Return the figure that chooses; raises RecipeError where the data has no such figure."""
    if not data.multilabel and by == "average_precision":
        raise RecipeError(f"by average_precision is of several labels, but images of {data.name} have one each")
    if data.multilabel and by not in (None, "average_precision"):
        problem = f"by {by} is of one label for each image, but those of {data.name} may have several"
        raise RecipeError(problem, fix="leave it out: mAP chooses")
    return by or ("average_precision" if data.multilabel else "accuracy")


def _leave(stop: Stop, jobs: str) -> None:
    """What is true of jobs once nobody looks at them."""
    stop.at(f"the jobs go on. Look again with: {stop.command}; end them with: scancel {jobs}")


@contextmanager
def _status(display: Display) -> Iterator[Callable[[str], None]]:
    """Keep a line on a terminal that says how things stand; elsewhere there is none."""
    if not (display.shown and display.console.is_terminal):
        yield lambda text: None
        return
    with display.console.status(styled("", "")) as status:
        yield lambda text: status.update(styled(text, ""))


def _notes(plan: Plan, answers: Mapping[str, Any], has_test: bool) -> list[str]:
    if not has_test:
        return [*plan.notes, "the data has no test part, so nothing says how the choice does on images that had no say"]
    earlier = unread_choice(plan, answers)
    note = f"the test part was read for {earlier} more cells, which an earlier choice in this folder had"
    return [*plan.notes, *([note] if earlier else [])]


def _finished(
    plan: Plan,
    entries: Sequence[Entry],
    tests: Sequence[PairedTest],
    unread: Mapping[str, str],
    notes: Sequence[str],
    by: By,
) -> Comparison:
    failed = {
        cell.name: outcome.problem
        for entry in entries
        for cell, outcome in zip(entry.candidate.cells, entry.outcomes, strict=True)
        if outcome.state == "failed"
    }
    ordered = sorted(entries, key=lambda entry: rank(entry, by))
    return Comparison(plan.folder, tuple(ordered), tuple(tests), tuple(notes), {**failed, **unread}, by)


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(text + " " * (width - cell_len(text)) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


def _figure(mean: float | None, spread: float | None) -> str:
    return "-" if mean is None else f"{mean:.4f}" + ("" if spread is None else f" ± {spread:.4f}")


def _entry_dict(entry: Entry) -> dict[str, Any]:
    cells = [
        {
            "name": cell.name,
            "run_dir": str(cell.run_dir),
            "seed": cell.recipe.seed,
            "state": outcome.state,
            "problem": outcome.problem or None,
            "val_accuracy": outcome.val_accuracy,
            "val_average_precision": outcome.val_average_precision,
            "seconds": outcome.seconds,
        }
        for cell, outcome in zip(entry.candidate.cells, entry.outcomes, strict=True)
    ]
    grid = {name: value if isinstance(value, (int, float)) else printed(value) for name, value in entry.candidate.grid}
    names = ("val_accuracy", "val_spread", "val_loss", "seconds", "per_second", "chosen", "best")
    means = [f"{part}_{name}" for part in ("val", "test") for name in (*MEANS, "average_precision")]
    figures = {name: getattr(entry, name) for name in (*names, "test_accuracy", "test_spread", *means)}
    return {**asdict(entry.candidate.arm), "grid": grid, **figures, "cells": cells}


def dry_run(plan: Plan) -> list[str]:
    """Return the command of each cell, for whatever engine runs them; write the recipes that no options can say."""
    if holds_objects(plan.cells[0].recipe):
        raise RecipeError("data, model or head is a Python object, which no command can hand over")
    lines = []
    for cell in plan.cells:
        file = recipe_file(plan.folder, cell)
        arguments, needs_file = run_arguments(cell.recipe, cell.run_dir, file)
        if needs_file:
            with writing(file):
                file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(file, cell.recipe.to_toml().encode())
        lines.append(shlex.join(["tlx", *arguments]))
    return lines


def write_page(comparison: Comparison) -> Path:
    """Write the page of a comparison into its folder."""
    from tlx.comparison.page import page

    path = comparison.folder / PAGE
    write_atomic(path, page(comparison).encode(errors="backslashreplace"))
    return path
