"""The results as lines of JSON, which a later call goes on from, and the table that is made of them."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from support.porting.case import Case
from support.porting.outcome import RIGHT, Kind, judged

BEGUN = "begun"
HEAD = """# Ports of eight networks

Each network is written twice by hand, as a reference in PyTorch and as a port in the way of porters: other names,
functions for modules, merged or separate projections, another layout. `tlx.parity` compares pairs that mean the same,
which it must find equal, and pairs with one planted fault, which it must find and name: the module, or the stretch
between two modules. Some faults lie in the loss, the optimizer or the loop; there the sentence must say so. One port
unties what the reference ties: it is refused, and the error must name the parameter.

Made by `make parity-suite`.

"""
COUNTED: tuple[tuple[Kind, ...], ...] = (
    ("named",),
    ("named wrongly",),
    ("missed", "underpowered"),
    ("refused", "crash"),
)


class Results:
    """A file with a line for each pair that was begun and one for each outcome; the last one of a pair counts."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lines(self) -> dict[str, dict[str, Any]]:
        """The last line of each pair."""
        if not self.path.exists():
            return {}
        texts = self.path.read_text(encoding="utf-8").splitlines()
        return {line["id"]: line for line in map(json.loads, texts)}

    def done(self) -> dict[str, dict[str, Any]]:
        """The outcomes by the pairs' ids."""
        return {name: line for name, line in self.lines().items() if line["verdict"] != BEGUN}

    def add(self, line: Mapping[str, Any]) -> None:
        """Add a line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def begin(self, name: str) -> None:
        """Note that a pair is being compared, or has to be compared again."""
        self.add({"id": name, "verdict": BEGUN})

    def crashed(self, code: int, ids: Collection[str]) -> None:
        """Turn what had begun in a process that ended early into a crash."""
        begun = [name for name, line in self.lines().items() if line["verdict"] == BEGUN and name in ids]
        if not begun:
            raise SystemExit(f"the process ended with {code} before it compared a pair")
        crash = {"verdict": "crash", "stage": "", "names": [], "first": f"the process ended with {code}", "seconds": 0}
        self.add({"id": begun[-1], **crash})


def table(cases: Sequence[Case], lines: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the whole page."""
    kinds = {case.id: judged(case, lines[case.id]) for case in cases if case.id in lines}
    compared = [case for case in cases if case.id in lines]
    left = [f"- `{case.id}`" for case in cases if case.id not in lines]
    pending = ["## Not compared yet", "", *left, ""] if left else []
    return "\n".join([HEAD + summary(compared, kinds), *pending, wrong(kinds, lines), every(compared, kinds, lines)])


def summary(cases: Sequence[Case], kinds: Mapping[str, Kind]) -> str:
    """Return a row of counts for each network."""
    rows = [
        "| network | equal pairs | found equal | planted faults | named | named wrongly | missed | refused, crashed |"
    ]
    rows.append("|---" * 8 + "|")
    for net in [*dict.fromkeys(case.net for case in cases), ""]:
        ours = [case for case in cases if case.net == net or not net]
        faults = [kinds[case.id] for case in ours if not case.equal]
        equal = [kinds[case.id] for case in ours if case.equal]
        counts = [sum(kind in counted for kind in faults) for counted in COUNTED]
        cells = (len(equal), equal.count("equal"), len(faults), *counts)
        rows.append(f"| {net or 'all'} | {' | '.join(map(str, cells))} |")
    return "\n".join(rows) + "\n"


def wrong(kinds: Mapping[str, Kind], lines: Mapping[str, Mapping[str, Any]]) -> str:
    """List what was not judged rightly, with what was said."""
    bad = [f"- `{name}`: {kind}. {lines[name]['first']}" for name, kind in kinds.items() if kind not in RIGHT]
    return "## Not judged rightly\n\n" + ("\n".join(bad) or "None.") + "\n"


def every(cases: Sequence[Case], kinds: Mapping[str, Kind], lines: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a row for each pair."""
    rows = ["## Every pair", "", "| network | port | pair | outcome | stage | named |", "|---|---|---|---|---|---|"]
    for case in cases:
        line = lines[case.id]
        named = ", in ".join(map(written, line["names"]))
        rows.append(f"| {case.net} | {case.framework} | {case.name} | {kinds[case.id]} | {line['stage']} | {named} |")
    return "\n".join(rows) + "\n"


def written(name: str) -> str:
    """Write a stretch "a>b" as people do."""
    begin, between, end = name.partition(">")
    if not between:
        return name
    if begin and end:
        return f"{begin} to {end}"
    return f"before {end}" if end else f"after {begin}" if begin else "the model's own code"
