"""Write down what one backend does with a recipe, as a folder that can be compared anywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from tlx.backend import Backend, registry
from tlx.errors import BackendError, RecipeError, TlxError
from tlx.models.zoo import architecture
from tlx.processes import Alone, Channel
from tlx.proof.artifact import MODULE, Capture, Writer
from tlx.proof.listed import Listed
from tlx.proof.randomness import Shared
from tlx.proof.record import RECORD
from tlx.proof.recorder import check_served
from tlx.proof.serving import SERVE
from tlx.proof.session import Session
from tlx.proof.spread import STAGES as SHARED_OUT
from tlx.proof.spread import Spread, folder_of
from tlx.recipe import Recipe
from tlx.training import build

STEPS = 40  # of the float64 trajectory, at least
STAGES = tuple(RECORD)
QUICK_PIXELS = 32  # a side, with --quick
# Without P9, which is no gate. First comes what a side computes by itself, so that the candidate, which is captured at
# the same time, seldom waits for the reference.
QUICK = ("P1", "P2", "P5", "P8", "P3", "P4", "P6", "P7")


def reduced(recipe: Recipe, largest: int | None = None) -> Recipe:
    """Shorten a recipe to what a proof needs: at least 40 steps with each of its boundaries, on few small images.

    They have at most `largest` pixels a side, or the fewest that the model takes.
    """
    arch = architecture(recipe.model) if isinstance(recipe.model, str) else None
    smallest = arch.min_size if arch else recipe.pixels.size
    size = min(recipe.pixels.size, largest or max(64, smallest + 5))  # with room for an odd and an even size
    batch = min(recipe.batch_size, 8)  # BatchNorm over fewer values is so unsteady that float64 does not settle it
    epochs = min(recipe.epochs, STEPS)
    shrink = epochs / recipe.epochs
    steps = -(-STEPS // epochs)
    images = steps * batch - 1  # the last batch is partial
    validates = recipe.schedule == "plateau"  # the only schedule that reads a validation loss
    share = (recipe.val_fraction or 0.1) if validates else 0.0
    phase_epochs = recipe.phase_epochs and max(round(recipe.phase_epochs * shrink), 1)
    strategy = recipe.strategy
    if not isinstance(strategy, str):
        strategy = replace(strategy, phases=tuple(replace(p, start=round(p.start * shrink)) for p in strategy.phases))
    return replace(
        recipe,
        strategy=strategy,
        batch_size=batch,
        micro_batch=None if recipe.micro_batch is None else max(batch // 2, 1),
        epochs=epochs,
        phase_epochs=phase_epochs,
        step_size=max(round(recipe.step_size * shrink), 1),
        warmup=recipe.warmup * shrink,
        image_size=arch.fitting(size) if arch else recipe.pixels.size,
        limit_train=round(images / (1 - share)),
        limit_test=4 * batch,
        val_fraction=share,
        patience=None,
        device="cpu" if recipe.device == "auto" else recipe.device,
        precision="float64",
        feature_cache="off",
        out=None,
    )


def left_out(recipe: Recipe) -> list[str]:
    """Name the fields of a recipe that `reduced` takes out of play, so that nothing of a proof is about them."""
    played = {
        "val_fraction": not recipe.val_fraction or recipe.schedule == "plateau",
        "patience": recipe.patience is None,
        "feature_cache": recipe.feature_cache == "off",
        "precision": recipe.precision != "bfloat16",
    }
    return [name for name, plays in played.items() if not plays]


def capture(
    recipe: Recipe | None,
    backend: str | Backend,
    out: str | Path,
    reference: str | Path | Capture | None = None,
    *,
    quick: bool = False,
    largest: int | None = None,
    copy_weights: bool = False,
    stages: tuple[str, ...] | None = None,
    feed: Callable[[Any], Any] = lambda loader: loader,
    serves: bool = True,
    whole: bool = True,
    channel: Channel = Alone(),  # noqa: B008 (frozen)
) -> Path:
    """Run the stages on one backend and write the folder `out`.

    Args:
        recipe: what to prove; it is shortened first (see `reduced`). None: everything comes from `reference`, the
            recipe, the weights and the batches, so that neither data nor weights are needed here.
        backend: a name, or the backend itself.
        out: a new or empty folder.
        reference: the capture of another backend, whose modules are replayed here one by one.
        quick: smaller images, fewer steps from the reference's states, and without P9, which is no gate.
        largest: pixels a side that images have at most. Default: 32 with `quick`, and about 64 without.
        copy_weights: start from the reference's values.
        stages: only these.
        feed: replaces the training loader; for planting faults.
        serves: without a reference, also write down what an engine outside tlx needs to be compared with this.
        whole: P3 and P4 also at a second size, and of each module by itself, which places a difference.
        channel: to other processes that call this too, and compute the steps together; see `tlx.proof.spread`.

    Returns:
        The folder.

    Raises:
        TlxError: the folder is not empty, the reference is damaged, or the backend cannot run the recipe.
    """
    if recipe is not None and recipe.fits:
        problem = f"strategy {recipe.strategy!r} takes no steps, so there is no training to compare"
        raise RecipeError(problem, fix="compare strategy feature_extract, which has the same features")
    loaded = registry.load(backend) if isinstance(backend, str) else backend
    if not hasattr(loaded, "probe"):
        raise BackendError(
            f"Backend {loaded.name!r} offers no probe(model), which `tlx parity` needs: tlx.backend.Probe"
        )
    stages = stages or (QUICK if quick else STAGES)
    if channel.world.size > 1:
        loaded, stages = cast(Backend, Spread(loaded, channel)), SHARED_OUT
        out = folder_of(Path(out), channel)
    other = Capture(reference) if isinstance(reference, (str, Path)) else reference
    named = recipe is not None and isinstance(recipe.model, str)
    if other is not None and not named and other.manifest["must"]["model"] == MODULE:
        loaded = cast(Backend, Listed(loaded, other))
    if recipe is None:
        if other is None:
            raise TlxError("capture needs a recipe, or the capture of another backend as its reference")
        short = replace(Recipe.from_dict(other.manifest["recipe"], str(reference)), backend=loaded.name, workers=0)
        classes = tuple(other.manifest["must"]["classes"])
        data, unplayed = None, other.manifest.get("not_run", [])
        check_served(other, short)
    else:
        short = reduced(recipe.resolved(), largest or (QUICK_PIXELS if quick else None))
        short = build.resolve_placement(replace(short, backend=loaded.name), loaded)
        data, unplayed = build.open_data(short), left_out(recipe)
        build.check_fit(short, data)
        classes = data.classes
    if not isinstance(short.model, str):
        loaded = Shared(loaded)
    writer = Writer(Path(out))
    session = Session(loaded, short, classes, data, other, copy_weights, writer, feed, quick, serves, whole)
    try:
        for stage in stages:
            RECORD[stage](session)
            if serves and other is None and stage in SERVE and not hasattr(loaded, "unseen"):  # an engine is fed images
                SERVE[stage](session)
        writer.close({**session.manifest(stages, quick), "not_run": unplayed})
    except BaseException:
        writer.abandon()
        raise
    return Path(out)
