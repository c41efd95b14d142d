"""Compares the pairs whose ids come as JSON on stdin, and adds a line to the results for each."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from support.porting.nets import NETS
from support.porting.outcome import judged, outcome
from support.porting.table import Results


def main() -> None:
    """Run the pairs in order; a pair that ends the process leaves the line that says it had begun."""
    results = Results(Path(sys.argv[1]))
    wanted = json.load(sys.stdin)
    for net, cases in NETS:
        for case in cases:
            if case.id in wanted:
                results.begin(case.id)
                line = outcome(net, case)
                results.add(line)
                names, seconds = " ".join(line["names"]), line["seconds"]
                print(f"{judged(case, line):14}{case.id}  [{line['stage']} {names}] {seconds} s", flush=True)


if __name__ == "__main__":
    main()
