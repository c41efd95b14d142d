"""Fill the disk at each write of each kind of run: it ends with one line, and what was saved before goes on bit for bit.

    python benchmarks/full_disk.py --step 4096

Needs `unshare -rm`: each trial has a file system of its own in memory, of which `--step` bytes more are free each time,
from none until the command succeeds without a note; the same is done with a limit to a file's size (RLIMIT_FSIZE).
It ends with 1 if a trial shows a traceback, a signal, more than one line of error, or another result.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

TLX = [sys.executable, "-c", "from tlx.cli import main; main()"]
FIELDS = ["--backend=loopback", "--model=tiny-mlp", "--weights=none", "--image-size=8", "--data=digits"]
FIELDS += ["--val-fraction=0", "--batch-size=256", "--feature-cache=auto"]
ROOM = 64 << 20  # bytes of the file system
# "$0" is the mount point, "$1" the bytes that shall be free, "$2" a folder whose content is there beforehand.
MOUNT = """mount -t tmpfs -o size=67108864 tlx "$0" && cp -a "$2/." "$0" || exit 99
filler=$((67108864 - $(du -sB1 "$0" | cut -f1) - $1)); [ $filler -le 0 ] || fallocate -l $filler "$0/.filler" || exit 99
shift 2; "$@"; code=$?; rm -f "$0/.filler"; "$TLX_AFTER" "$0"; after=$?; [ $after = 0 ] || exit 98; exit $code"""


@dataclass(frozen=True)
class Kind:
    """A kind of command. `{disk}` in its words is the small file system, `{work}` a folder with room."""

    words: tuple[str, ...]
    goes_on: bool = False  # what is on the disk must be resumed to the same weights afterwards


KINDS = {
    "scratch, out": Kind(("run", *FIELDS, "--epochs=2", "--strategy=full", "--out={disk}/run")),
    "feature_extract, out": Kind(("run", *FIELDS, "--epochs=2", "--strategy=feature_extract", "--out={disk}/run")),
    "feature_extract, cache": Kind(("run", *FIELDS, "--epochs=2", "--strategy=feature_extract", "--out={work}/run")),
    "resume": Kind(("run", "--resume={disk}/finished", "--epochs=4"), goes_on=True),
    "evaluate": Kind(("evaluate", "{disk}/finished", "--json")),
    "predict --csv": Kind(("predict", "{disk}/finished", "{work}/photos", "--csv={disk}/out.csv")),
    "archive": Kind(("run", *FIELDS[:4], "--data={work}/photos.zip", "--val-fraction=0", "--epochs=1", "--out={work}/run")),
}
