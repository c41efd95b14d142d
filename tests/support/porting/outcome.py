"""One pair compared, what the proof made of it, and whether that is right."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal
from unittest.mock import patch

import tlx
from support.porting.case import Case, Net
from tlx.backend import registry
from tlx.errors import TlxError, one_line
from tlx.proof.pair import Pair
from tlx.proof.report import Report
from tlx.recipe import Recipe

Line = Mapping[str, Any]  # an outcome as plain values: a line of the results
Kind = Literal["equal", "false alarm", "named", "named wrongly", "missed", "underpowered", "refused", "crash"]
RIGHT: tuple[Kind, ...] = ("equal", "named")
FIELDS: dict[str, Any] = {"strategy": "full", "schedule": "step", "step_size": 1, "epochs": 4, "lr": 0.02}


def outcome(net: Net, case: Case) -> dict[str, Any]:
    """Compare a pair; return the verdict, the first stage that failed, what is named, the sentence and the time."""
    started = time.perf_counter()
    line: dict[str, Any] = {"id": case.id, "stage": "", "names": []}
    try:
        report = compared(net, case)
    except TlxError as error:
        line |= {"verdict": "refused", "first": one_line(str(error))}
    except Exception as error:
        line |= {"verdict": "crash", "first": one_line(f"{type(error).__name__}: {error}")}
    else:
        stage = next((stage.id for stage in report.stages if stage.passed is False), "")
        line |= {"verdict": report.verdict.name.lower(), "stage": stage, "names": names(report)}
        line["first"] = " ".join([report.first, *report.notes]).strip()
    return {**line, "seconds": round(time.perf_counter() - started, 1)}


def compared(net: Net, case: Case) -> Report:
    """Build both sides and compare them."""
    loaded: Any = registry.load(case.framework)
    reference, candidate = net.reference(), net.port(loaded.fw, **case.choices)
    if case.prepare is not None:
        case.prepare(reference, candidate)
    fields: dict[str, Any] = {**FIELDS, **net.fields, **case.fields}
    if net.batch is not None:
        fields["batch"] = net.batch()
    if net.loss is not None:
        fields["loss"] = (net.loss, case.loss or net.loss)
    rename = dict(net.rename(**case.choices))
    with planted(case):
        return tlx.parity(
            reference=reference, candidate=candidate, rename=rename, copy_weights=case.copies, quick=True, **fields
        )


def planted(case: Case) -> AbstractContextManager[Any]:
    """Put the case's fault in front of the candidate's backend."""
    if case.plant is None:
        return nullcontext()
    plant, sides = case.plant, Pair.sides

    def with_fault(pair: Pair, rename: object) -> list[tuple[Any, Recipe]]:
        reference, (backend, recipe) = sides(pair, rename)
        return [reference, (plant(backend), recipe)]

    return patch.object(Pair, "sides", with_fault)


def names(report: Report) -> list[str]:
    """What a report names: a module, or a stretch between two as "a>b", and the module whose own code that is."""
    difference = report.to_dict()["difference"]
    if difference and difference["row"] and difference["row"]["kind"] == "dropout":
        return [difference["row"].get("path", "")]
    replay = difference and difference["replay"]
    if not replay:
        return []
    if "previous" in replay:
        within = [replay["within"]] if replay.get("within") else []
        return [f"{replay['previous']}>{replay['path']}", *within]
    return [replay["where"] if "where" in replay else replay["path"]]


def judged(case: Case, line: Line) -> Kind:
    """Say whether a verdict is right, and whether what is to blame is named."""
    verdict = line["verdict"]
    said = bool(case.says and re.search(case.says, line["first"]))
    if verdict == "crash":
        return "crash"
    if verdict in ("refused", "not_comparable"):
        return "named" if case.refused and said else "refused"
    if case.equal:
        return "equal" if verdict == "equal" else "underpowered" if verdict == "underpowered" else "false alarm"
    if verdict == "equal":
        return "missed"
    return "named" if said or any(fits(name, p) for name in line["names"] for p in case.places) else "named wrongly"


def fits(name: str, place: str) -> bool:
    """Whether what was named is the place: the module, or the stretch, whose ends may be named by what holds them.

    Which call of a module it is ("#2") is not asked.
    """
    name = re.sub(r"#\d+", "", name)
    if ">" not in name or ">" not in place:
        return name == place
    ends = zip(name.split(">"), place.split(">"), strict=True)
    return all(end == meant or (end and meant.startswith(f"{end}.")) for end, meant in ends)
