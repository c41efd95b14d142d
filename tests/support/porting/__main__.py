"""Compare every pair, each network in a process of its own, and write the table: what `make parity-suite` runs."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from itertools import groupby
from pathlib import Path

from support.porting.nets import NETS
from support.porting.outcome import RIGHT, judged
from support.porting.table import Results, table


def main() -> int:
    """Run what the results lack, write the table, and return 1 where a pair was judged wrongly."""
    parser = argparse.ArgumentParser(prog="python -m support.porting", description=__doc__)
    parser.add_argument("-k", "--only", default="", help="pairs whose id holds this text")
    parser.add_argument("--results", type=Path, default=Path("parity-suite.jsonl"), help="where it goes on")
    parser.add_argument("--again", choices=("wrong", "all"), help="compare these pairs again")
    parser.add_argument("--list", action="store_true", help="print the pairs' ids, and compare none")
    parser.add_argument("-o", "--output", type=Path, help="write the table to this file")
    options = parser.parse_args()
    cases = [case for _, of_net in NETS for case in of_net if options.only in case.id]
    if options.list:
        print("\n".join(case.id for case in cases))
        return 0
    results = Results(options.results)
    known = results.done()
    for case in cases if options.again else ():
        if case.id in known and (options.again == "all" or judged(case, known[case.id]) not in RIGHT):
            results.begin(case.id)
    for _, of_net in groupby(cases, key=lambda case: case.net):
        ids = [case.id for case in of_net]
        while left := [name for name in ids if name not in results.done()]:
            command = [sys.executable, "-m", "support.porting.worker", str(options.results)]
            finished = subprocess.run(command, input=json.dumps(left), text=True)
            if finished.returncode:
                results.crashed(finished.returncode, left)
    lines = results.done()
    if options.output:
        options.output.write_text(table(cases, lines), encoding="utf-8")
    else:
        print(table(cases, lines))
    return int(any(judged(case, lines[case.id]) not in RIGHT for case in cases))


if __name__ == "__main__":
    sys.exit(main())
