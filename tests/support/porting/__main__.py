"""Compare every pair, each network in a process of its own, and write the table: what `make parity-suite` runs."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from support.porting.nets import NETS
from support.porting.table import Results, table


def main() -> int:
    """Run what the results lack, write the table, and return 1 where a pair was judged wrongly."""
    parser = argparse.ArgumentParser(prog="python -m support.porting", description=__doc__)
    parser.add_argument("-k", "--only", default="", help="pairs whose id holds this text")
    parser.add_argument("--results", type=Path, default=Path("parity-suite.jsonl"), help="where it goes on")
    parser.add_argument("--again", default="", help="kinds of outcomes to repeat, with commas, or: all")
    parser.add_argument("--list", action="store_true", help="print the pairs' ids")
    parser.add_argument("-o", "--output", type=Path, help="write the table to this file")
    options = parser.parse_args()
    results = Results(options.results)
    wanted = {case.id: net.name for net, cases in NETS for case in cases if options.only in case.id}
    if options.list:
        print("\n".join(wanted))
        return 0
    results.forget(options.again.split(","), set(wanted))
    for net in dict.fromkeys(net.name for net, _ in NETS):
        while ids := [case for case, of in wanted.items() if of == net and case not in results.done()]:
            command = [sys.executable, "-m", "support.porting.worker", str(options.results)]
            finished = subprocess.run(command, input=json.dumps(ids), text=True)
            if finished.returncode:
                results.crashed(finished.returncode)
    lines = [line for line in results.done().values() if line["id"] in wanted]
    if options.output:
        options.output.write_text(table(lines), encoding="utf-8")
    else:
        print(table(lines))
    return int(any(line["kind"] not in ("equal", "named") for line in lines))


if __name__ == "__main__":
    sys.exit(main())
