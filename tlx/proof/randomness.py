"""Randomness in two modules that are compared: masks that both share, and what either draws by itself.

The calls of dropouts are matched, each with its partner in the reference, whose mask it then has. What draws from a
framework's own generator is found by passes under other seeds; a difference that it may have made shows nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from tlx.backend import Draw, Model
from tlx.proof.artifact import Capture
from tlx.proof.recorder import Proxy
from tlx.proof.result import SIDES, Row, Side, Stage

if TYPE_CHECKING:
    from tlx.proof.session import Session

DRAWS = "P4/draws"
RESTS_ON = {"P3": "P3", "P4": "P4", "P6": "P4", "P7": "P4", "P8": "P4", "P9": "P4"}  # on whose passes a stage rests
MODES = {"P3": "evaluation", "P4": "training"}
ADVICE = (
    "What differs after that shows nothing. tlx draws the masks of nn.Dropout, of F.dropout looked up where it is "
    "called (not imported by name), and of classes named like DropPath that do exactly what a dropout does."
)
Match: TypeAlias = dict[int, tuple[int, str]]  # candidate's draw -> the reference's, and by what it was found


class Shared(Proxy):
    """A backend whose dropouts act in each phase where their partners in the reference do."""

    def __init__(self, inner: Any) -> None:
        """Stand in front of `inner`."""
        super().__init__(inner)
        self.around: dict[Model, list[frozenset[str]]] = {}  # of each draw: the parameters beside which it acts

    def set_phase(self, model: Model, trainable: frozenset[str], batch_norm: frozenset[str]) -> None:
        """Choose what trains, and which dropouts act beside it."""
        self.inner.set_phase(model, trainable, batch_norm)
        if model in self.around:
            self.inner.probe(model).act([bool(names & trainable) for names in self.around[model]])


def share(s: Session, model: Model) -> bool:
    """Let the dropouts of a model draw as those of the reference, and write down what they are.

    Returns False where that was done before, or cannot be; else its buffers are as after a pass.
    """
    if not isinstance(s.backend, Shared) or model in s.backend.around:
        return False
    probe: Any = s.probe_of(model)
    if not hasattr(probe, "draws"):
        return False
    s.train_everything(model)
    batch = s.backend.put(model, s.batches[0])
    draws: tuple[Draw, ...] = probe.draws(lambda: s.backend.backward(model, batch))
    probe.set_gradients({})
    partners: list[Draw | None] = [None] * len(draws)
    if s.reference is not None:
        of_reference = draws_of(s.reference)
        for index, (other, _) in match(of_reference, draws).items():
            partners[index] = of_reference[other]
        probe.follow(partners)
    if not s.backend.around:
        s.writer.add(DRAWS, {"draws": [asdict(draw) for draw in draws]})
    pairs = zip(draws, partners, strict=True)
    s.backend.around[model] = [frozenset((partner or draw).around) for draw, partner in pairs]
    return True


def search(s: Session, stage: str, call: Callable[[], Any]) -> None:
    """Write down where a stage's pass, `call`, draws random numbers that are not the core's."""
    probe: Any = s.probe
    if not isinstance(s.backend, Shared) or not hasattr(probe, "random"):
        return

    def run() -> None:
        s.start(s.model)
        if stage == "P4":
            s.train_everything(s.model)
        call()

    found = probe.random(run)
    probe.set_gradients({})
    if found is not None:
        s.writer.add(f"{stage}/random", asdict(found))


def draws_of(c: Capture) -> list[Draw]:
    """Return the draws that a capture holds."""
    facts = c.records[DRAWS].facts["draws"] if DRAWS in c.records else []
    return [Draw(**{**draw, "shape": tuple(draw["shape"]), "around": tuple(draw["around"])}) for draw in facts]


def match(reference: Sequence[Draw], candidate: Sequence[Draw]) -> Match:
    """Find the reference's partner of each draw: of equal probability and size.

    First by name, which says nothing where it is a number or is called more often on one side; then by place, after
    the same module with parameters; then by order.
    """
    found: Match = {}
    for how, keys in (("name", _names), ("place", _places), ("order", _order)):
        used = {other for other, _ in found.values()}
        left = [index for index in range(len(reference)) if index not in used]
        partners = {key: index for key, index in zip(keys([*reference], left), left, strict=True) if key is not None}
        mine = [index for index in range(len(candidate)) if index not in found]
        for key, index in zip(keys([*candidate], mine), mine, strict=True):
            if key in partners:
                found[index] = partners.pop(key), how
    return found


def _kind(draw: Draw) -> tuple[float, int]:
    return round(draw.p, 6), math.prod(draw.shape)


def _names(draws: Sequence[Draw], wanted: Sequence[int]) -> list[Any]:
    calls = Counter((draw.path, draw.function) for draw in draws)
    return [
        None
        if (draw := draws[index]).path.rpartition(".")[2].isdigit()
        else (draw.path, draw.function, draw.call, calls[draw.path, draw.function], _kind(draw))
        for index in wanted
    ]


def _places(draws: Sequence[Draw], wanted: Sequence[int]) -> list[Any]:
    counts: Counter[Any] = Counter()
    places = []
    for draw in draws:
        place = draw.after, _kind(draw)
        places.append((place, counts[place]))
        counts[place] += 1
    return [places[index] for index in wanted]


def _order(draws: Sequence[Draw], wanted: Sequence[int]) -> list[Any]:
    counts: Counter[Any] = Counter()
    order = []
    for index in wanted:
        kind = _kind(draws[index])
        order.append((kind, counts[kind]))
        counts[kind] += 1
    return order


def dropout_rows(a: Capture, b: Capture, others: Sequence[Row]) -> list[Row]:
    """Return a row for each dropout. One without a partner matters where `others`, the stage's rows, differ."""
    reference, candidate = draws_of(a), draws_of(b)
    if DRAWS not in a.records or DRAWS not in b.records:
        return []
    found = match(reference, candidate)
    used = {other for other, _ in found.values()}
    without = [draw for index, draw in enumerate(candidate) if index not in found]
    harmless = all(row.passed for row in others)
    rows = []
    for index, draw in enumerate(reference):
        if index in used:
            rows.append(Row(kind="dropout", path=draw.path, error=0.0, passed=True))
            continue
        alike = next((other for other in without if _same_place(draw, other)), None)
        if alike is not None:
            without.remove(alike)
        rows.append(_one_sided(draw, "candidate" if alike is None else None, harmless, alike))
    return [*rows, *(_one_sided(draw, "reference", harmless) for draw in without)]


def _same_place(draw: Draw, other: Draw) -> bool:
    return (draw.path, draw.call) == (other.path, other.call) or draw.after == other.after


def _one_sided(draw: Draw, missing: Side | None, harmless: bool, other: Draw | None = None) -> Row:
    values = _amount(draw), _amount(draw if other is None else other)
    error = 0.0 if harmless else math.inf
    return Row(kind="dropout", path=draw.path, error=error, passed=harmless, missing=missing, values=values)


def _amount(draw: Draw) -> str:
    parts = math.prod(draw.shape)
    return f"{draw.p:.3g} of {parts} {'part' if parts == 1 else 'parts'}"


def judged(stage: Stage, a: Capture, b: Capture) -> Stage:
    """Return a stage that fails as one that shows nothing, where what differs comes after a side's own randomness."""
    basis = RESTS_ON.get(stage.id, "")
    captures = zip(SIDES, (a, b), strict=True)
    sides = {side: c.records[f"{basis}/random"].facts for side, c in captures if f"{basis}/random" in c.records}
    if stage.passed is not False or not sides:
        return stage
    before = set.intersection(*(set(facts["before"]) for facts in sides.values()))
    if any(not row.passed and _ran_in(row, before) for row in stage.rows):
        return stage
    return replace(stage, passed=None, enough=False, facts={**stage.facts, "random": " and ".join(sides)})


def _ran_in(row: Row, paths: set[str]) -> bool:
    path = row.path.partition("#")[0]
    return (row.kind == "output" and path in paths) or (row.kind == "buffer" and path.rpartition(".")[0] in paths)


def notes(a: Capture, b: Capture) -> tuple[str, ...]:
    """Say which side draws by itself, and which dropouts have neither name nor place in common."""
    texts = []
    for side, c in zip(SIDES, (a, b), strict=True):
        for stage, mode in MODES.items():
            if f"{stage}/random" in c.records:
                texts.append(f"{_of_its_own(side, mode, c.records[f'{stage}/random'].facts)}.")
    if texts:
        texts[-1] += f" {ADVICE}"
    reference, candidate = draws_of(a), draws_of(b)
    pairs = [
        f"{_place(reference[other].path)} with {_place(candidate[index].path)}"
        for index, (other, how) in match(reference, candidate).items()
        if how == "order"
    ]
    if pairs:
        texts.append(f"Dropouts matched by their order alone: {', '.join(dict.fromkeys(pairs))}.")
    return tuple(texts)


def _of_its_own(side: Side, mode: str, facts: Mapping[str, Any]) -> str:
    return f"The {side} draws random numbers of its own in {mode}, first in {_place(facts['path'])} ({facts['kind']})"


def _place(path: str) -> str:
    return path or "its outermost code"
