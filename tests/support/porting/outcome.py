"""One pair compared, and what the proof made of it."""

from __future__ import annotations

import re
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Literal
from unittest.mock import patch

import tlx
from support.porting.case import Case, Net
from tlx.backend import registry
from tlx.errors import TlxError, one_line
from tlx.proof.report import Report
from tlx.proof.result import Verdict

Kind = Literal["equal", "false alarm", "named", "named wrongly", "missed", "refused", "crash"]
RIGHT: tuple[Kind, ...] = ("equal", "named")
FIELDS: dict[str, Any] = {"strategy": "full", "schedule": "step", "step_size": 1, "epochs": 4, "lr": 0.02}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the proof made of a pair."""

    id: str
    fault: bool
    kind: Kind
    stage: str = ""  # the first that failed
    named: str = ""  # the module, or the stretch "a>b", that was named
    first: str = ""  # the report's sentence, or the error
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)


def outcome(net: Net, case: Case) -> Outcome:
    """Compare a pair and judge the report."""
    started = time.perf_counter()
    kind: Kind
    try:
        report = compared(net, case)
    except TlxError as error:
        kind, stage, named, first = "refused", "", "", one_line(str(error))
    except Exception as error:
        kind, stage, named, first = "crash", "", "", one_line(f"{type(error).__name__}: {error}")
    else:
        kind, stage, named, first = judged(case, report), failed(report), place(report), report.first
    seconds = round(time.perf_counter() - started, 1)
    return Outcome(id=case.id, fault=not case.equal, kind=kind, stage=stage, named=named, first=first, seconds=seconds)


def compared(net: Net, case: Case) -> Report:
    """Build both sides and compare them."""
    loaded = registry.load(case.framework)
    reference, candidate = net.reference(), net.port(loaded.fw, **case.choices)  # type: ignore[attr-defined]
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
    """Put the case's fault in front of the candidate's backend, which is then OneFlow, as the reference's is torch."""
    if case.plant is None:
        return nullcontext()
    plant, load = case.plant, registry.load
    return patch("tlx.backend.registry.load", lambda name: plant(load(name)) if name == "oneflow" else load(name))


def judged(case: Case, report: Report) -> Kind:
    """Say whether a verdict is right, and whether it names what is to blame."""
    if report.verdict == Verdict.NOT_COMPARABLE:
        return "refused"
    if case.equal:
        return "equal" if report.verdict == Verdict.EQUAL else "false alarm"
    if report.verdict != Verdict.DIFFERENT:
        return "missed"
    right = re.search(case.says, report.first) if case.says else place(report) in case.places
    return "named" if right else "named wrongly"


def failed(report: Report) -> str:
    """The first stage that failed."""
    return next((stage.id for stage in report.stages if stage.passed is False), "")


def place(report: Report) -> str:
    """The module that a report names, as its path, or the stretch between two, as "a>b"."""
    replay = report.to_dict()["difference"] and report.to_dict()["difference"]["replay"]
    if not replay:
        return "-"
    return replay["path"] if "classes" in replay else f"{replay['previous']}>{replay['path']}"
