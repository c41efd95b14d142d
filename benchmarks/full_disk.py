"""Fill the disk at each write of each kind of command: one line and exit code 2, or a finished run; nothing is torn.

    unshare -rm python benchmarks/full_disk.py --levels 200

In a namespace of its own, each trial has a file system in memory with a little more room than the last, from none to
all that the command needs; then a limit to the size of a file (RLIMIT_FSIZE). What was saved before must be there, and
a run must go on to the same bits once there is room. It ends with 1 if a trial does otherwise.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
from PIL import Image

TLX = [sys.executable, "-c", "from tlx.cli import main; main()"]
SMALL = ["--backend=loopback", "--model=tiny-mlp", "--weights=none", "--image-size=8", "--batch-size=256"]
DIGITS = ["--data=digits", "--val-fraction=0"]
PHOTOS = ["--val-fraction=0", "--epochs=1", "--out={work}/new"]
FROZEN = ["run", *SMALL, *DIGITS, "--epochs=2", "--strategy=feature_extract"]
# {disk} is the small file system, on which a finished run and the cache are too; {work} has room.
KINDS = {
    "scratch": ["run", *SMALL, *DIGITS, "--epochs=2", "--strategy=scratch", "--out={disk}/new"],
    "full": ["run", *SMALL, *DIGITS, "--epochs=2", "--strategy=full", "--out={disk}/new"],
    "feature_extract": [*FROZEN, "--out={disk}/new"],
    "cache": [*FROZEN, "--out={work}/new"],
    "resume": ["run", "--resume={disk}/finished", "--epochs=3"],
    "evaluate": ["evaluate", "{disk}/finished", "--json"],
    "predict": ["predict", "{disk}/finished", "{work}/photos", "--csv={disk}/out.csv"],
    "capture": ["parity", "capture", *SMALL, *DIGITS, "--quick", "-o", "{disk}/capture"],
    "archive": ["run", *SMALL, *PHOTOS, "--data={work}/photos.zip"],
    "address": ["run", *SMALL, *PHOTOS, "--data={url}"],
}
ROOM = 64 << 20  # bytes


def main() -> int:
    """Run the trials, print a line for each kind, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--levels", type=int, default=50)
    parser.add_argument("--limits", type=int, nargs="*", default=[0, 100, 4096, 10_000, 20_000], help="bytes of a file")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    options = parser.parse_args()
    faults = 0
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as small:
        work, disk = Path(folder), Path(small)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tlx", small], check=True)
        try:
            with prepared(work) as url:
                for name in options.kinds:
                    command = [word.format(work=work, disk=disk, url=url) for word in KINDS[name]]
                    faults += trials(name, command, work, disk, options.levels, options.limits)
        finally:
            subprocess.run(["umount", small], check=True)
    return min(faults, 1)


def trials(name: str, command: list[str], work: Path, disk: Path, levels: int, limits: list[int]) -> int:
    """Try a command with more and more room; return how many trials ended as none may."""
    reset(work, disk)
    whole = call(command, disk)
    assert whole.returncode == 0, whole.stderr
    expected, need = weights(command), used(disk)
    reset(work, disk)
    need += (1 << 18) - used(disk)  # a file is written whole before it takes the place of another
    ended: Counter[str] = Counter()
    rooms = [(int(need * level / levels), None) for level in range(levels + 1)]
    for room, limit in [*rooms, *((None, limit) for limit in limits)]:
        reset(work, disk)
        if room is not None:
            fill(disk / "filler", max(0, ROOM - used(disk) - room))
        before = {path: path.read_bytes() for path in (disk / "finished").rglob("*") if path.is_file()}
        process = call(command, disk, limit)
        (disk / "filler").unlink(missing_ok=True)
        fault = wrong(process, command, disk, expected, before)
        ended["wrong" if fault else "one line" if process.returncode else "finished"] += 1
        if fault:
            print(f"{name}, room {room}, file limit {limit}: {fault}\n{process.stderr[-600:]}", file=sys.stderr)
    print(f"{name}: {dict(ended)}, {need:,} bytes in {levels} levels", flush=True)
    return ended["wrong"]


def wrong(
    process: subprocess.CompletedProcess[str], command: list[str], disk: Path, expected: str, before: dict[Path, bytes]
) -> str:
    """Say what a command did that it may not; nothing where it ended well."""
    lines = [line for line in process.stderr.splitlines() if line.startswith("tlx: ")]
    if process.returncode not in (0, 2) or "Traceback" in process.stderr or "Exception ignored" in process.stderr:
        return f"exit code {process.returncode}"
    if process.returncode == 2 and (len(lines) != 1 or not process.stderr.rstrip().endswith(lines[0])):
        return "not one line"
    if process.returncode == 0 and weights(command) != expected:
        return "other weights"
    torn = [path for path in disk.rglob("*.tmp") if not path.is_relative_to(disk / "cache")]
    if torn:
        return f"left {torn}"
    if "--resume" in command[1]:
        again = process if process.returncode == 0 else call(command, disk)
        return "" if again.returncode == 0 and weights(command) == expected else f"does not go on: {again.stderr}"
    if any(not path.is_file() or path.read_bytes() != content for path, content in before.items()):
        return "the finished run has changed"
    if process.returncode == 2 and command[0] == "run" and (new := target(command)).joinpath("last").is_dir():
        again = call(["run", f"--resume={new}"], disk)
        return "" if again.returncode == 0 and weights(command) == expected else f"does not go on: {again.stderr}"
    return ""


def call(command: list[str], disk: Path, limit: int | None = None) -> subprocess.CompletedProcess[str]:
    """Call tlx, with the cache on the small file system, and a limit to the size of files."""

    def limited() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    environment = {**os.environ, "TLX_CACHE": str(disk / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run([*TLX, *command], env=environment, capture_output=True, text=True, preexec_fn=limited)


def target(command: list[str]) -> Path:
    """The folder that a run writes to."""
    return Path(next(word.partition("=")[2] for word in command if word.startswith(("--out=", "--resume="))))


def weights(command: list[str]) -> str:
    """A hash of the weights that a run left; nothing for other commands."""
    if command[0] != "run":
        return ""
    return hashlib.sha256((target(command) / "model.safetensors").read_bytes()).hexdigest()


def fill(file: Path, size: int) -> None:
    """Take room on a disk."""
    with file.open("wb") as filler:
        if size:
            os.posix_fallocate(filler.fileno(), 0, size)


def used(disk: Path) -> int:
    """Bytes that are taken on a file system."""
    usage = shutil.disk_usage(disk)
    return usage.total - usage.free


def reset(work: Path, disk: Path) -> None:
    """Put a finished run alone on the small file system."""
    shutil.rmtree(work / "new", ignore_errors=True)
    for path in disk.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(work / "finished", disk / "finished")


@contextmanager
def prepared(work: Path) -> Iterator[str]:
    """Make a finished run, photos and an archive of them; give the address at which the archive is served."""
    run = call(["run", *SMALL, *DIGITS, "--epochs=2", f"--out={work / 'finished'}"], work)
    assert run.returncode == 0, run.stderr
    for number in range(20):
        photo = work / "photos" / f"class{number % 2}" / f"{number}.png"
        photo.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(photo)
    shutil.make_archive(str(work / "photos"), "zip", work, "photos")
    handler = partial(SimpleHTTPRequestHandler, directory=str(work))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/photos.zip"
        server.shutdown()


if __name__ == "__main__":
    sys.exit(main())
