"""Where two captures first differ, and which module or stretch between modules is to blame: facts, no words.

Forward, the pass itself tells: from the whole model down, the first call within that gives something else is to blame
if the same entered it, and otherwise the code before it. Backward, the gradients of one call mix with those of others,
so each call is judged by what it gives when it is fed the reference's inputs and output gradients by itself. A module
around others is judged without them: it is to blame if it differs, and none of those within.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from tlx.proof.artifact import Capture
from tlx.proof.calls import Call, Calls, why_not_replayed
from tlx.proof.measure import relative, unbundle
from tlx.proof.replays import LIMIT
from tlx.proof.result import Alone, Between, Blame, Difference, Outside, Row, Stage

Modules = tuple[tuple[str, str], ...]
FORWARD, ALL, BUFFERS = ("forward",), ("forward", "gradients"), ("buffers",)


def first_difference(a: Capture, b: Capture, stages: Sequence[Stage]) -> Difference | None:
    """Return what the first failing stage shows; None where none fails."""
    stage = next((stage for stage in stages if stage.passed is False), None)
    if stage is None:
        return None
    row = next((row for row in stage.rows if not row.passed), None)
    # Replaying a module says nothing about a loss that differs while every output is equal.
    if row is None or stage.id not in ("P3", "P4") or row.kind in ("loss", "correct", "size", "dropout"):
        return Difference(stage, row)
    return Difference(stage, row, blame(a, b, stage.id, row))


def blame(a: Capture, b: Capture, stage: str, row: Row) -> Blame | None:
    """Find the module that differs by itself, or the stretch between two that do not; None where nothing shows it."""
    prefix = stage if row.size is None else f"{stage}/@{row.size}"
    search = Search(a, b, prefix)
    if row.kind == "buffer":
        return search.statistics(row.path)
    return search.backward() if row.kind == "gradient" else search.forward()


class Search:
    """Looks for the culprit among the calls of one pass."""

    def __init__(self, a: Capture, b: Capture, prefix: str) -> None:
        """Read the calls below a prefix such as "P4" or "P3/@45"."""
        self.calls = Calls(a, b, prefix)
        self.why = why_not_replayed(a, b, prefix)

    def forward(self) -> Blame | None:
        """Go down from the whole model to what first gives something else."""
        calls, root = self.calls, self.calls.root
        if root < len(calls.pairs):
            model = calls.pairs[root]
            if model.entered == "different":
                return Outside("input")
            if model.gave_equal:
                return Outside("logits")
        return self._forward_within(root)

    def _forward_within(self, number: int) -> Blame | None:
        """Find what differs within a call that got the same on both sides and gave something else."""
        pairs, previous = self.calls.pairs, None
        children = self.calls.children(number)
        for child in children:
            pair = pairs[child]
            if pair.gave_equal:
                previous = child
                continue
            if pair.entered == "equal" or (pair.entered == "incomparable" and self._tells(child)):
                return self._forward_within(child)
            if previous is None and number == len(pairs) and pair.entered == "different":
                return Outside("input")  # the whole model was not recorded, and nothing comes before its first module
            unknown = pair.entered == "incomparable" and self.calls.differs_alone(child, FORWARD) is not False
            begin = previous if previous is None else self._feeding(child, previous)
            return self._between(number, begin, child, including=unknown, swapped=pair.swapped)
        if children or number == len(pairs):
            return self._between(number, previous, None)
        return self._alone(number, FORWARD)

    def _feeding(self, number: int, previous: int) -> int | None:
        """Return after which call the way to one begins that leads through calls of the reference alone.

        That is not the call before, where another branch ran in between. Where there is no such way, or it is lost
        among functions that came after that call: `previous`.
        """
        pairs, first = self.calls.pairs, number
        wanted = pairs[number].a.files("input")
        for other in reversed(range(number)):
            alone = pairs[other].b is None
            if not wanted & pairs[other].a.files("output") or (alone and self.calls.children(other)):
                continue  # what a container gives is what the last call in it gave
            if not alone:
                return other if first < number and pairs[other].gave_equal else previous
            first, wanted = other, pairs[other].a.files("input")
        return previous if first > previous else None

    def _tells(self, number: int) -> bool:
        """Whether a call that differs is to blame, though what entered it cannot be compared."""
        if self.calls.differs_alone(number, FORWARD):
            return True
        first = next((self.calls.pairs[child] for child in self.calls.children(number)), None)
        return first is not None and (first.gave_equal or first.entered == "equal")

    def backward(self) -> Blame | None:
        """Take the last call that differs by itself; where none does, look for where gradients begin to differ."""
        calls, root = self.calls, self.calls.root
        found = self._innermost(root, ALL)
        if not found and root < len(calls.pairs):
            if calls.pairs[root].grads_equal is False:
                return Outside("loss gradient")
            if calls.differs_alone(root) is False:
                return None
            found = [root]
        if not found:
            return None
        last = found[-1]
        return self._backward_within(last) if calls.children(last) else self._alone(last, ALL)

    def _backward_within(self, number: int) -> Between:
        """Find after which call within another one the gradients begin to differ."""
        following = None
        for child in reversed(self.calls.children(number)):
            if self.calls.pairs[child].grads_equal is False:
                return self._between(number, child, following, backward=True)
            following = child
        return self._between(number, None, None, backward=True)

    def statistics(self, name: str) -> Blame | None:
        """Judge the module that owns a buffer."""
        path = name.rpartition(".")[0]
        calls = self.calls
        own = [number for number, pair in enumerate(calls.pairs) if pair.a.path == path]
        for number in own:
            if calls.differs_alone(number, BUFFERS):
                return self._alone(number, BUFFERS)
        return Outside("statistics", path, (len(own), sum(call.path == path for call in calls.theirs)))

    def _innermost(self, number: int, kinds: Collection[str]) -> list[int]:
        """Return the calls within one, or itself, that differ by themselves while none within them does."""
        differs = self.calls.differs_alone(number, kinds)
        if differs is False:
            return []
        within = [found for child in self.calls.children(number) for found in self._innermost(child, kinds)]
        return within or ([number] if differs else [])

    def _alone(self, number: int, kinds: Collection[str]) -> Alone:
        calls, pair = self.calls, self.calls.pairs[number]
        errors = calls.errors_alone(number, kinds) or {}
        wrong = {name: error for name, error in errors.items() if error > LIMIT}
        quantity, error = next(iter(wrong.items()), ("output", pair.error))
        others = {calls.pairs[other].a.path for other in self._innermost(calls.root, kinds)} - {pair.a.path}
        return Alone(
            path=pair.a.path,
            quantity=quantity,
            error=error,
            classes=(pair.a.kind, pair.b.kind if pair.b else "?"),
            others=len(others),
            transposed=self._is_transposed(number),
            call=pair.a.number,
            calls=sum(call.path == pair.a.path for call in calls.ours),
            replay="different" if wrong else "equal" if errors else "none",
            why="" if errors else self.why.get((pair.a.path, pair.a.number), ""),
        )

    def _is_transposed(self, number: int) -> bool:
        """Whether the candidate's module gives the reference's output once its weight is transposed."""
        call = self.calls.ours[number]
        a, b = self.calls.replays.get((call.path, call.number), (None, None))
        if a is None or b is None or "transposed" not in b.facts:
            return False
        expected = unbundle(a.facts["forward"], a.array("forward")).get("output")
        transposed = unbundle(b.facts["transposed"], b.array("transposed")).get("output")
        return bool(expected and transposed and relative(expected[1], transposed[1]) <= LIMIT)

    def _between(self, within: int, previous: int | None, end: int | None, **facts: bool) -> Between:
        """Describe the stretch after one call and before another, within a third; None: its beginning or its end."""
        pairs = self.calls.pairs
        container = pairs[within] if within < len(pairs) else None
        first = None if previous is None else pairs[previous]
        last = container if end is None else pairs[end]
        ours, theirs = {id(pair.a) for pair in pairs if pair.b}, {id(pair.b) for pair in pairs}
        return Between(
            last.a.name if last else "",
            first.a.name if first else "",
            _unpaired(self.calls.ours, ours, first.a if first else None, last.a if last else None),
            _unpaired(self.calls.theirs, theirs, first.b if first else None, last.b if last else None),
            container.a.name if container else "",
            **facts,
        )


def _unpaired(calls: Sequence[Call], paired: Collection[int], first: Call | None, last: Call | None) -> Modules:
    """Return path and class of the modules without a partner that run between two calls and hold no others."""
    start = calls.index(first) + 1 if first else 0
    stop = calls.index(last) if last else len(calls)
    return tuple(
        (calls[number].path, calls[number].kind)
        for number in range(start, stop)
        if id(calls[number]) not in paired and not (number and calls[number - 1].depth > calls[number].depth)
    )
