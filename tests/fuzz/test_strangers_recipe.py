"""A recipe from a stranger can name data, weights and a folder; it executes nothing, and overwrites nothing."""

from __future__ import annotations

import io
import os
import pickle
import socket
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

from support.hostile import check
from support.hostile_recipes import BASE

TARGET = "recipe: a stranger's"


def run(folder: Path, **fields: Any) -> int:
    """Run a recipe that a stranger wrote; but for `runs`, nothing in the folder may change."""
    recipe = {name: value for name, value in {**BASE, **fields}.items() if value is not None}
    (folder / "recipe.toml").write_text(tomli_w.dumps(recipe))
    return check(TARGET, "run", "recipe.toml", folder=folder).code


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with what a user does not want to lose, and a module that must not be imported."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "thesis.txt").write_text("precious")
    (tmp_path / "file").write_text("precious")
    (tmp_path / "link").symlink_to("photos")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "evil.py").write_text("import pathlib\npathlib.Path('executed').touch()\nattr = print\n")
    return tmp_path


PLACES = ["photos", "photos/", "./photos/../photos", "file", "file/below", "link", "dangling", "loop", ".", "..", "/"]
HALF_MADE = ["new/../photos", "new/" + "x" * 300, "new/folder/../../file", "/proc/new/run", "/dev/null/run"]


@pytest.mark.parametrize("out", [*PLACES, *HALF_MADE])
def test_a_folder_that_holds_something_is_left_alone(out: str, home: Path) -> None:
    assert run(home, out=out) == 2


class Executes:
    """Pickled, it calls a function when it is read."""

    def __reduce__(self) -> Any:
        return os.system, ("touch executed",)


def pickles() -> dict[str, bytes]:
    """Files of weights and of data that execute where they are unpickled."""
    pickled, zipped, array = pickle.dumps(Executes(), 2), io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", b"3\n")
    np.savez(array, x_train=np.array([Executes()], dtype=object), y_train=np.array([0]), allow_pickle=True)
    return {"plain.pth": pickled, "zipped.pth": zipped.getvalue(), "all.npz": array.getvalue()}


@pytest.mark.parametrize("name", pickles())
@pytest.mark.parametrize("field", ["weights", "data"])
def test_a_pickle_is_not_executed(field: str, name: str, home: Path) -> None:
    (home / name).write_bytes(pickles()[name])
    assert run(home, **{field: name}) == 2


def archives() -> dict[str, bytes]:
    """Archives whose entries would lie outside of where they are unpacked."""
    zipped, tarred = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("../photos/thesis.txt", b"overwritten")
        archive.writestr("/tmp/../file", b"overwritten")
    with tarfile.open(fileobj=tarred, mode="w") as tar:
        link = tarfile.TarInfo("a")
        link.type, link.linkname = tarfile.SYMTYPE, ".."
        tar.addfile(link)
        for name in ("a/file", "../file"):
            entry = tarfile.TarInfo(name)
            entry.size = 11
            tar.addfile(entry, io.BytesIO(b"overwritten"))
    return {"data.zip": zipped.getvalue(), "data.tar": tarred.getvalue()}


@pytest.mark.parametrize("name", archives())
@pytest.mark.parametrize("field", ["weights", "data", "data_root"])
def test_an_archive_overwrites_nothing(field: str, name: str, home: Path) -> None:
    (home / name).write_bytes(archives()[name])
    assert run(home, **{field: name}) == 2


CODE = ["evil:attr", "evil.attr", "evil", "evil.py", "python:evil", "import evil", "file://evil.py"]


@pytest.mark.parametrize("text", CODE)
@pytest.mark.parametrize("field", ["model", "strategy", "head", "backend", "data", "weights", "augment", "device"])
def test_no_field_names_code(field: str, text: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(home))
    assert run(home, **{field: text, "lr": None if field == "strategy" else BASE["lr"]}) == 2


@pytest.mark.parametrize("field", ["weights", "out", "data_root", "model", "backend", "device", "path_column"])
def test_only_data_can_name_an_address(field: str, home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        (home / "http:").mkdir()
        (home / "http:" / "kept").touch()
        assert run(home, **{field: f"http://127.0.0.1:{server.getsockname()[1]}/.."}) == 2
        with pytest.raises(BlockingIOError):  # nobody knocked
            server.accept()
