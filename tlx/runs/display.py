"""What a person sees of a run: on a terminal a live bar, elsewhere plain lines. Everything goes to stderr."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from html import escape
from typing import TYPE_CHECKING, Any, TypeVar

from rich.box import SIMPLE_HEAD
from rich.progress import BarColumn, Progress
from rich.table import Table

from tlx.backend.threads import Others
from tlx.console import Console, bar_text, styled
from tlx.errors import one_line, printable
from tlx.streams import stderr
from tlx.training.metrics import EpochEnded, Event, Extracted, FeaturesKept, FeaturesNotKept, Metrics, PhaseStarted
from tlx.training.metrics import Progress as Step

if TYPE_CHECKING:
    from tlx.data import Data
    from tlx.recipe import Recipe
    from tlx.runs.evaluation import Evaluation
    from tlx.runs.result import Result
    from tlx.strategy.plan import Fits, Plan, Row
    from tlx.training.loop import State, Training
    from tlx.training.multilabel import Figures

T = TypeVar("T")
Listener = Callable[[Event], object]
LINE_SECONDS = 10.0  # between two plain progress lines
SLOW_SECONDS = 1.5  # after which a count is worth a line
READING = "reading the images, to know them again"
TABLE_ROWS = 20  # classes that an evaluation prints
FITS: dict[Fits, str] = {
    "probe": "a logistic regression on the features of one view of each image",
    "knn": "the nearest training images vote, by the features of one view of each",
}
CROWDED = 0.2  # the part of the cores' time that others may take before a run says so


class Display:
    """Shows a run's table, progress, epochs and result; with `quiet`, nothing."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(file=stderr(), quiet=quiet, soft_wrap=True)
        self.shown = not quiet
        self._bar: Progress | None = None
        self._cell: NotebookBar | None = None
        self._epochs = 0
        self._line = 0.0
        self._others = Others()

    def say(self, text: str) -> None:
        """Say something in one line, whatever names stand in it."""
        self.console.print(text)

    def data(self, data: Data) -> None:
        """Say what is trained on."""
        parts = ", ".join(
            f"{len(part)} {name}"
            for name, part in (("train", data.train), ("validation", data.val), ("test", data.test))
            if part is not None
        )
        several = ", of which several may apply to an image" if data.multilabel else ""
        self.console.print(
            styled(data.name, "bold"), f": {len(data.classes)} classes{several}; images: {parts}", sep=""
        )
        self.say(f"  training images of each class: {data.class_counts(data.train)}")

    def notes(self, notes: Sequence[str]) -> None:
        """Say what was passed over, chosen or changed, a line each."""
        for note in notes:
            self.say(f"  note: {note}")

    def counted(self, what: str) -> Callable[[int, int], None]:
        """Return what says how far something has come, if it takes longer than a moment."""
        started = time.perf_counter()
        said = started + SLOW_SECONDS - LINE_SECONDS

        def advance(done: int, total: int) -> None:
            nonlocal said
            if (now := time.perf_counter()) - said > LINE_SECONDS:
                said = now
                left = _clock((now - started) / done * (total - done))
                self.say(f"{what}: {done:,} of {total:,}  {done / (now - started):,.0f}/s  {left} left")

        return advance

    def plan(self, plan: Plan, recipe: Recipe, notes: Sequence[str] = ()) -> None:
        """Print the group table before anything trains, with what is to be said of the model."""
        how = FITS[recipe.fits] if recipe.fits else f"{recipe.optimizer}, schedule {recipe.schedule}"
        self.console.print(
            styled(recipe.model_name, "bold"),
            f" on {recipe.backend} ({recipe.device}, {recipe.precision}), weights {recipe.weights}, {how}",
            sep="",
        )
        self.notes(notes)
        self.console.print(group_table(plan.strategy.name, plan.table()))

    def resumed(self, state: State, training: Training) -> None:
        """Say where a run continues."""
        steps = training.loader.steps
        epoch, step = divmod(state.step, steps)
        self.console.print(f"resumed in epoch {epoch + 1} after {step} of {steps} steps")

    @contextmanager
    def live(self, recipe: Recipe) -> Iterator[None]:
        """Keep a live bar on a terminal or in a notebook while the block runs."""
        self._epochs = recipe.epochs
        if self.shown and self.console.is_jupyter:
            self._cell = NotebookBar()
            try:
                yield
            finally:
                self._cell.close()
                self._cell = None
            return
        if not (self.shown and self.console.is_terminal):
            yield
            return
        columns = (bar_text("description"), BarColumn(bar_width=30), bar_text("fields[figures]"))
        with Progress(*columns, console=self.console, transient=True) as self._bar:
            self._bar.add_task("starting", total=None, figures="")
            yield
        self._bar = None

    def event(self, event: Event) -> None:
        """Show an event of a run."""
        if isinstance(event, Step):
            self._step(event)
        elif isinstance(event, Extracted):
            self._extracted(event)
        elif isinstance(event, EpochEnded):
            self._epoch(event)
        elif isinstance(event, (FeaturesKept, FeaturesNotKept)):
            self.console.print(str(event))
        elif isinstance(event, PhaseStarted) and event.epoch > 0:
            self.console.print(f"phase {event.phase} begins with epoch {event.epoch + 1}")

    def _extracted(self, event: Extracted) -> None:
        rate = event.images / max(event.seconds, 1e-9)
        left = _clock((event.total - event.images) / max(rate, 1e-9))
        figures = f"{event.images}/{event.total}  {rate:.0f} images/s  {left} left"
        self._show(f"features of {event.part}", event.images, event.total, figures)

    def _step(self, event: Step) -> None:
        rate = event.metrics.images / max(event.seconds, 1e-9)
        left = event.seconds / event.step * (event.steps - event.step)
        where = event.part if event.part == "test" else f"epoch {event.epoch + 1}/{self._epochs} {event.part}"
        figures = (
            f"{event.step}/{event.steps}  loss {event.metrics.loss:.4f}  accuracy {event.metrics.accuracy:.4f}  "
            f"{rate:.0f} images/s  {_clock(left)} left"
        )
        self._show(where, event.step, event.steps, figures)

    def _show(self, where: str, step: int, steps: int, figures: str) -> None:
        if self._bar is not None:
            task = self._bar.task_ids[0]
            self._bar.update(task, description=where, total=steps, completed=step, figures=figures)
        elif self._cell is not None:
            self._cell.show(where, step, steps, figures)
        elif step < steps and time.perf_counter() - self._line > LINE_SECONDS:
            self._line = time.perf_counter()
            self.console.print(f"{where}  {figures}")

    def _epoch(self, event: EpochEnded) -> None:
        self._line = time.perf_counter()
        val = f"  val loss {event.val.loss:.4f} {_score(event.val)}" if event.val else ""
        best = "  best" if event.best and event.val else ""
        others = self._others.share() or 0.0
        crowd = f"  (other processes took {others:.0%} of the processor)" if others > CROWDED else ""
        if event.fit is not None:
            tried = f", of {len(event.fit.tried)} tried" if len(event.fit.tried) > 1 else ""
            self.console.print(
                f"{event.fit}{tried}, in {event.fit.seconds:.1f} s  train loss {event.train.loss:.4f} "
                f"accuracy {event.train.accuracy:.4f}{val}"
            )
            return
        self.console.print(
            f"epoch {event.epoch + 1}/{self._epochs}  train loss {event.train.loss:.4f} "
            f"accuracy {event.train.accuracy:.4f}{val}  {event.train.images / event.seconds:.0f} images/s{best}{crowd}"
        )

    def result(self, result: Result) -> None:
        """Say how a run ended, and where it is."""
        self.say(summary(result))


class NotebookBar:
    """A bar in a notebook's output, which is replaced in place; rich's own needs ipywidgets for that."""

    def __init__(self) -> None:
        from IPython.display import display

        self._handle: Any = display({"text/plain": ""}, raw=True, display_id=True)  # type: ignore[no-untyped-call]

    def show(self, where: str, step: int, steps: int, figures: str) -> None:
        """Show how far a pass has come."""
        bar = f'<progress value="{step}" max="{steps}"></progress>'
        html = f"<pre>{escape(where)} {bar} {escape(figures)}</pre>"
        self._handle.update({"text/html": html, "text/plain": f"{where} {figures}"}, raw=True)

    def close(self) -> None:
        """Leave nothing of the bar behind."""
        self._handle.update({"text/html": "", "text/plain": ""}, raw=True)


def summary(result: Result) -> str:
    """Return a result as one line."""
    test = result.unread if result.test_accuracy is None else f"test {result.score}"
    if result.test_balanced_accuracy is not None:
        test += f", balanced {result.test_balanced_accuracy:.4f}, macro F1 {result.test_macro_f1:.4f}"
    which = result.chosen or f"epoch {result.best_epoch} of {result.epochs_run}"
    return (
        f"{test} ({which}), {result.trainable_parameters:,} of "
        f"{result.total_parameters:,} parameters trained, {_clock(result.wall_seconds)}; saved in {result.run_dir}"
    )


def print_evaluation(evaluation: Evaluation) -> None:
    """Print an evaluation to stdout: two lines, and a table of the classes that have images, or of the worst."""
    recorded, k = evaluation["recorded_accuracy"], evaluation["top_k"]
    print(
        f"test accuracy {evaluation['test_accuracy']:.4f} over {evaluation['images']} images of "
        f"{printable(evaluation['data'])} on {evaluation['backend']}"
        f"{'' if evaluation['tta'] == 'none' else ', each with its mirror image'}; the run recorded "
        f"{'none' if recorded is None else f'{recorded:.4f}'} on its own test part"
    )
    if evaluation["multilabel"] is not None:
        return _print_multilabel(evaluation["multilabel"])
    top_k = "" if k is None else f", top-{k} accuracy {evaluation['top_k_accuracy']:.4f}"
    print(f"balanced accuracy {evaluation['balanced_accuracy']:.4f}, macro F1 {evaluation['macro_f1']:.4f}{top_k}")
    classes = [entry for entry in evaluation["classes"] if entry["images"]]
    worst = sorted(classes, key=lambda entry: entry["accuracy"] or 0)[:TABLE_ROWS]
    rows = [
        (entry["class"], str(entry["images"]), f"{entry['accuracy']:.4f}", f"{entry['f1']:.4f}")
        for entry in classes
        if entry in worst
    ]
    print_table(("class", "images", "accuracy", "F1"), rows, right=(1, 2, 3))
    if len(classes) > len(rows):
        print(f"and {len(classes) - len(rows)} classes with a higher accuracy: see --json")


def _print_multilabel(figures: Figures) -> None:
    """Print how well each class is told where several may apply."""
    totals = (figures[name] for name in ("average_precision", "micro_f1", "macro_f1"))
    words = ("-" if total is None else f"{total:.4f}" for total in totals)
    print(
        "the accuracy is of images whose labels are all right; "
        + ", ".join(f"{name} {word}" for name, word in zip(("mAP", "micro F1", "macro F1"), words, strict=True))
    )
    worst = sorted(figures["classes"], key=lambda entry: entry["average_precision"] or 0)[:TABLE_ROWS]
    rows = []
    for entry in [entry for entry in figures["classes"] if entry in worst]:
        values = (entry["average_precision"], entry["f1"], entry["threshold"])
        numbers = ("-" if value is None else f"{value:.4f}" for value in values)
        rows.append((entry["class"], str(entry["images"]), *numbers))
    print_table(("class", "images", "AP", "F1", "threshold"), rows, right=(1, 2, 3, 4))


def print_table(names: Sequence[str], rows: Iterable[Sequence[str]], right: Collection[int] = ()) -> None:
    """Print a table to stdout; the columns whose numbers stand in `right` are aligned to the right."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for place, name in enumerate(names):
        # A long name or text is wrapped before a number loses digits.
        whole = place in right or 0 < place < len(names) - 1
        table.add_column(name, justify="right" if place in right else "left", no_wrap=whole, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def group_table(title: str, rows: Sequence[Row]) -> Table:
    """Draw a strategy's groups: what trains in which phase, at which rate, and how BatchNorm behaves."""
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    phases = len({row.phase for row in rows}) > 1
    columns = ["group", "tensors", "parameters", "lr", "decay", "statistics"]
    for name in ["phase", *columns] if phases else columns:
        table.add_column(name, justify="left" if name in ("phase", "group", "statistics") else "right", no_wrap=True)
    for row in rows:
        lr = row.state if row.lr is None else f"{row.lr:g}"
        decay = "-" if row.lr is None else f"{row.weight_decay:g}"
        cells = [row.group, str(row.tensors), f"{row.parameters:,}", lr, decay, row.norm]
        table.add_row(*([f"{row.phase} from {row.epoch + 1}", *cells] if phases else cells))
    return table


def _score(metrics: Metrics) -> str:
    """What the best epoch is chosen by, in words."""
    ranked = metrics.average_precision
    return f"accuracy {metrics.accuracy:.4f}" if ranked is None else f"mAP {ranked:.4f}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def follow(events: Generator[Event, None, T], listeners: Sequence[Listener]) -> T:
    """Run a generator of events to its end, passing each to the listeners; return what it returned."""
    with closing(events):
        while True:
            try:
                event = next(events)
            except StopIteration as stop:
                value: T = stop.value
                return value
            for listener in listeners:
                listener(event)


def listening(on_event: Listener) -> Listener:
    """Call a user's function with each event until it raises: a broken listener must not end a training."""
    broken = False

    def listener(event: Event) -> None:
        nonlocal broken
        if broken:
            return
        try:
            on_event(event)
        except Exception as error:
            broken = True
            cause = one_line(f"{type(error).__name__}: {error}")
            warnings.warn(f"on_event raised {cause}; the run goes on without it", RuntimeWarning, stacklevel=2)

    return listener
