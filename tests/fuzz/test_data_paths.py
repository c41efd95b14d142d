"""Hostile paths: names that are odd, and what lies there instead of a file or a folder."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st

from support.hostile import check, snapshot
from support.hostile_data import RUN, SAMPLES, TRAPS, fewer_inputs, png, traps, use

SUFFIXES = ("", ".csv", ".npz", ".tar", ".zip", ".tar.gz", ".parquet", ".png", ".toml")
# In a workplace that `furnished` made.
THERE = (
    *(f"pipe{suffix}" for suffix in SUFFIXES),
    *(f"zero{suffix}" for suffix in SUFFIXES),
    *(f"socket{suffix}" for suffix in SUFFIXES[:4]),
    *(f"folder{suffix}" for suffix in SUFFIXES),
    *(f"circle{suffix}" for suffix in SUFFIXES),
    *(f"file{suffix}" for suffix in SUFFIXES),
    *(
        "p",
        "p/0",
        "many",
        "deep",
        "circles",
        "circles/a",
        "p/../p",
        "./p",
        "p/",
        "p/0/0.png",
        "p/0/0.png/",
        "up",
        "up/up",
    ),
    *(f"t/{name}" for name in TRAPS),
    "t",
)
# fmt: off
ABSENT = (
    "", " ", ".", "..", "/", "//", "~", "~nobody", "~nobody/x", "~/x", "-", "--", "-x", "--help", "-x.csv", "none",
    "x" * 255, "x" * 256, "x" * 5000, "x/" * 2100, "../" * 500, "/".join("x" * 99), "é" * 127 + ".csv",
    "file/x", "file/",
    "/dev/null", "/dev/zero", "/dev/full", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0", "/proc/self/mem",
    "/proc/self/pagemap", "/proc/self/fd", "/proc/self/root/none", "/proc/none/x", "/proc/kmsg", "/proc/kcore",
    "/sys/none", "/sys/kernel/none/x",
    "a\nb", "a\rb", "\x1b[31m", "\x7f", "\udcff", "\udcff.csv", "\udcff/x", "\u202e", "\u2028", "\ufeff", "COM1", "a:b",
    "http://", "http:///x", "file:///etc/passwd", "s3://x", "://", "http://[", "http://[::1", "http://a\tb", "//x/y",
    "http://127.0.0.1:99999/x", "http://127.0.0.1:x/x", "http://\udcff/", "https://user:password@/x", "x://y#sha256=",
    "http://127.0.0.1:1/x#sha256=", "http://127.0.0.1:1/x#md5=" + "0" * 32, "http://" + "a" * 300 + "/x",
    "{0..999999999}.tar", "{a,{b,c}}.tar", "{" * 99 + "}" * 99 + ".tar", "{0..3}{0..3}.tar", "{,}" * 30 + ".tar",
    "{0..999}" * 9 + ".tar", "x{9..1}.tar", "*", "?", "[x]", "$HOME", "`touch executed`", "$(touch executed)",
    "; touch x",
    "cifar1O", "digits ", "CIFAR10", "arrays", "folder", "csv",
)
# fmt: on
paths = st.sampled_from(THERE) | st.sampled_from(ABSENT) | st.text(max_size=20).filter(lambda text: "\0" not in text)


@contextmanager
def furnished(tmp_path: Path) -> Iterator[Path]:
    """A folder that holds whatever a path may lead to; it is made anew once something in it has changed."""
    folder = tmp_path / "furnished"
    if not folder.exists():
        folder.mkdir()
        furnish(folder)
        (tmp_path / "entries").write_text(str(len(snapshot(folder))))
    yield folder
    if str(len(snapshot(folder))) != (tmp_path / "entries").read_text():
        shutil.rmtree(folder)


def furnish(folder: Path) -> None:
    """Put into a folder whatever a path may lead to."""
    (folder / "t").mkdir()
    traps(folder / "t")
    for suffix in SUFFIXES:
        os.mkfifo(folder / f"pipe{suffix}")
        (folder / f"zero{suffix}").symlink_to("/dev/zero")
        (folder / f"folder{suffix}").mkdir()
        (folder / f"circle{suffix}").symlink_to(f"circle{suffix}")
        (folder / f"file{suffix}").write_text("x")
    here = os.getcwd()
    os.chdir(folder)  # the path of a socket has 108 bytes at most
    for suffix in SUFFIXES[:4]:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(f"socket{suffix}")
    os.chdir(here)
    for i in range(SAMPLES):
        (folder / "p" / str(i % 2)).mkdir(parents=True, exist_ok=True)
        (folder / "p" / str(i % 2) / f"{i}.png").write_bytes(png())
    (folder / "up").symlink_to("..")
    # Each folder of `many` leads to the next by two names, which makes 2^30 paths; `circles` lead to each other.
    for i in range(30):
        (folder / "many" / str(i)).mkdir(parents=True)
        for name in "ab":
            (folder / "many" / str(i) / name).symlink_to(f"../{i + 1}")
    (folder / "circles" / "a").mkdir(parents=True)
    (folder / "circles" / "b").mkdir()
    (folder / "circles" / "a" / "b").symlink_to("../b")
    (folder / "circles" / "b" / "a").symlink_to("../a")
    (folder / "circles" / "a" / "c").symlink_to("..")
    (folder / "circles" / "a" / "0.png").write_bytes(png())
    (folder / "deep" / "/".join("d" * 60)).mkdir(parents=True)
    odd = folder / "odd"
    odd.mkdir()
    for raw in (
        b"\xff.png",
        b"a\nb.png",
        b"-x.png",
        b"\x1b[31m.png",
        b"x" * 251 + b".png",
        b".png",
        "\u202e.png".encode(),
    ):
        with open(os.path.join(os.fsencode(odd), raw), "wb") as file:
            file.write(png())


@fewer_inputs
@given(path=paths, root=st.none() | paths)
@example(path="http://[", root=None)
@example(path="{0..999}" * 9 + ".tar", root=None)
@example(path="{,}" * 30 + ".tar", root=None)
def test_a_path_of_data(path: str, root: str | None, tmp_path: Path, run_dir: Path) -> None:
    with furnished(tmp_path) as folder:
        use("path of data", "run", run_dir, path, folder, *(() if root is None else ("--data-root", root)))


@fewer_inputs
@given(path=paths)
def test_a_path_to_evaluate(path: str, tmp_path: Path, run_dir: Path) -> None:
    with furnished(tmp_path) as folder:
        use("path to evaluate", "evaluate", run_dir, path, folder)


@fewer_inputs
@given(chosen=st.lists(paths | st.just("odd"), min_size=1, max_size=3), dashes=st.booleans())
@example(chosen=["many"], dashes=False)
def test_paths_to_predict(chosen: list[str], dashes: bool, tmp_path: Path, run_dir: Path) -> None:
    with furnished(tmp_path) as folder:
        given = [*(("--",) if dashes else ()), *(f"./{name}" if name in ("", "/") else name for name in chosen)]
        check("paths to predict", "predict", str(run_dir), *given, folder=folder)


@fewer_inputs
@given(path=paths)
@example(path="x" * 256)
def test_a_path_of_a_run(path: str, tmp_path: Path) -> None:
    with furnished(tmp_path) as folder:
        check("path of a run", "predict", path, "p", folder=folder)


INSIDE = tuple(
    path for path in (*THERE, *ABSENT) if not path.startswith(("/dev/fd", "/proc/self/fd")) and "up" not in path
)
outputs = st.sampled_from(INSIDE).filter(lambda path: not path.startswith("../"))


@fewer_inputs
@given(path=outputs)
def test_a_path_of_a_table_to_write(path: str, tmp_path: Path, run_dir: Path) -> None:
    with furnished(tmp_path) as folder:
        written = tuple(Path(os.path.normpath(path)).parts[:1])
        check("path of a table", "predict", str(run_dir), "p", "--csv", path, folder=folder, writes=written)


@fewer_inputs
@given(path=outputs)
def test_a_path_of_a_run_to_write(path: str, tmp_path: Path) -> None:
    with furnished(tmp_path) as folder:
        written = tuple(Path(os.path.normpath(path)).parts[:1])
        check("path of a new run", "run", "--data", "p", *RUN, "--out", path, folder=folder, writes=written)
