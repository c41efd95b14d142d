"""The files of a run's folder, for tests that look at them or change them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from tlx.manifest import MANIFEST, RECIPE, Entry, Manifest, read_manifest


def state_file(run: Path) -> Path | None:
    """The file of the saved state that counts now; None before the first save."""
    manifest = read_manifest(run) if (run / MANIFEST).exists() else None
    return next((run / name for name in manifest.states()), None) if manifest else None


def saved_step(run: Path) -> int:
    """The step that a run has saved, while another process may be saving the next."""
    from safetensors import safe_open

    while (file := state_file(run)) is not None:
        try:
            with safe_open(file, "np") as state:
                return int(json.loads(state.metadata()["tlx"])["step"])
        except FileNotFoundError:  # the next one is there
            continue
    return 0


def change(run: Path, name: str, edit: Callable[[str], str]) -> None:
    """Edit a text file of a run as if tlx had written it so."""
    path = run / name
    path.write_bytes(edit(path.read_text(encoding="utf-8")).encode())
    reseal(run)


def reseal(run: Path) -> None:
    """Write the manifest for what the files hold now."""
    manifest = read_manifest(run)
    assert manifest is not None
    contents = {name: (run / name).read_bytes() for name in manifest.files}
    files = {name: Entry(len(data), hashlib.sha256(data).hexdigest()) for name, data in contents.items()}
    Manifest(files, contents[RECIPE].decode()).write(run)
