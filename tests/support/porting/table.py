"""The results as lines of JSON, which a later call goes on from, and the table that is made of them."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

Line = dict[str, Any]  # an outcome as plain values
BEGUN = "begun"
KINDS = ("equal", "false alarm", "named", "named wrongly", "missed", "refused", "crash")


class Results:
    """A file with a line for each pair that was begun and one for each outcome; the last one of a pair counts."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lines(self) -> dict[str, Line]:
        """The last line of each pair."""
        if not self.path.exists():
            return {}
        texts = self.path.read_text(encoding="utf-8").splitlines()
        return {line["id"]: line for line in map(json.loads, texts)}

    def done(self) -> dict[str, Line]:
        """The outcomes by the pairs' ids."""
        return {name: line for name, line in self.lines().items() if line["kind"] != BEGUN}

    def add(self, line: Line) -> None:
        """Add a line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def begin(self, name: str, fault: bool) -> None:
        """Note that a pair is being compared."""
        self.add({"id": name, "fault": fault, "kind": BEGUN})

    def crashed(self, code: int) -> None:
        """Turn what had begun, and will never end, into a crash."""
        begun = [line for line in self.lines().values() if line["kind"] == BEGUN]
        if not begun:
            raise SystemExit(f"the process ended with {code} before it compared a pair")
        for line in begun:
            text = f"the process ended with {code}"
            self.add({**line, "kind": "crash", "stage": "", "named": "", "first": text, "seconds": 0.0})

    def forget(self, kinds: Collection[str], ids: Collection[str]) -> None:
        """Let pairs of some kinds be compared again."""
        for name, line in self.lines().items():
            if name in ids and (line["kind"] in kinds or "all" in kinds):
                self.add({"id": name, "fault": line["fault"], "kind": BEGUN})


def table(lines: Sequence[Line]) -> str:
    """Return the whole page."""
    return HEAD + summary(lines) + "\n" + wrong(lines) + "\n" + every(lines)


HEAD = """# Ports of eight networks

Each network is written twice, as a reference for PyTorch and as its port, by hand and as porters write: other names,
functions for modules, merged or separate projections, another layout. `tlx.parity` compares pairs that mean the same,
and pairs with one planted fault, which it must find and name: the module, or the stretch between two modules. Some
faults lie in the loss, the optimizer or the loop; there the sentence must say so. Made by `make parity-suite`.

"""


def summary(lines: Sequence[Line]) -> str:
    """Return a row of counts for each network."""
    nets = list(dict.fromkeys(line["id"].split("/")[0] for line in lines))
    rows = [
        "| network | equal pairs | found equal | planted faults | named | named wrongly | missed | refused or crashed |"
    ]
    rows.append("|---" * 8 + "|")
    for net in [*nets, ""]:
        ours = [line for line in lines if not net or line["id"].startswith(f"{net}/")]
        count = {kind: sum(line["kind"] == kind for line in ours) for kind in KINDS}
        faults = sum(line["fault"] for line in ours)
        cells = (len(ours) - faults, count["equal"], faults, count["named"], count["named wrongly"], count["missed"])
        rows.append(f"| {net or 'all'} | {' | '.join(map(str, (*cells, count['refused'] + count['crash'])))} |")
    return "\n".join(rows) + "\n"


def wrong(lines: Sequence[Line]) -> str:
    """List what was not judged rightly, with what was said."""
    bad = [line for line in lines if line["kind"] not in ("equal", "named")]
    listed = "\n".join(f"- `{line['id']}`: {line['kind']}. {line['first']}" for line in bad)
    return f"## Not judged rightly\n\n{listed or 'None.'}\n"


def every(lines: Sequence[Line]) -> str:
    """Return a row for each pair."""
    rows = ["## Every pair", "", "| network | port | pair | outcome | stage | named |", "|---|---|---|---|---|---|"]
    for line in lines:
        net, framework, name = line["id"].split("/", 2)
        named = line["named"] if line["named"] not in ("-", "") else ""
        rows.append(
            f"| {net} | {framework} | {name} | {line['kind']} | {line['stage']} | {named.replace('>', ' to ')} |"
        )
    return "\n".join(rows) + "\n"
