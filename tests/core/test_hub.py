"""Weights from the Hugging Face Hub, by its own client, from a server on this machine that speaks its protocol."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from support.hub import COMMIT, Hub, ask, serving_hub
from tlx.errors import WeightsError
from tlx.models.hub import fetch_hosted
from tlx.models.weights import safetensors_bytes

pytest.importorskip("huggingface_hub")

REPOSITORY = "someone/net"
CHUNK = 10 << 20  # bytes that the client writes at once
WEIGHTS = safetensors_bytes({"fc.weight": np.arange(60_000, dtype=np.float32)})


def fetch(source: str = f"hf-hub:{REPOSITORY}") -> str:
    """Code that fetches a source; the client does not pause between its attempts."""
    impatient = "import time\ntime.sleep = lambda seconds: None\n"
    call = f"from tlx.models.hub import fetch_hosted\nh = fetch_hosted({source!r}, False)\n"
    return impatient + call + "answer = [str(h.path), h.source]"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving_hub() as hub:
        hub.repositories[REPOSITORY] = {"model.safetensors": WEIGHTS, "pytorch_model.bin": b"not asked for"}
        yield hub


def test_weights_are_downloaded_once_and_named_by_their_commit(hub: Hub, tmp_path: Path) -> None:
    path, source = ask(fetch(), hub, tmp_path)
    assert Path(path).read_bytes() == WEIGHTS
    assert source == f"hf-hub:{REPOSITORY}@{COMMIT}"
    assert Path(path).is_relative_to(tmp_path)  # HF_HOME
    assert ask(fetch(), hub, tmp_path) == [path, source]
    assert hub.transfers() == [None]
    asked = len(hub.asked)
    assert ask(fetch(source), hub, tmp_path) == [path, source]  # a commit needs no question at all
    assert len(hub.asked) == asked


def test_offline_the_cache_serves_them_and_what_it_lacks_is_one_line(hub: Hub, tmp_path: Path) -> None:
    line = ask(fetch(), hub, tmp_path, HF_HUB_OFFLINE="1")
    assert line == (
        f"weights of {REPOSITORY} are not in the hub's cache {tmp_path / 'hub'}, and HF_HUB_OFFLINE is set. "
        "Fix: run once without HF_HUB_OFFLINE, or pass weights as a file (--weights FILE)"
    )
    assert hub.asked == []
    found = ask(fetch(), hub, tmp_path)
    asked = len(hub.asked)
    assert ask(fetch(), hub, tmp_path, HF_HUB_OFFLINE="1") == found
    assert len(hub.asked) == asked


def test_without_a_network_the_cache_serves_them_and_what_it_lacks_is_one_line(hub: Hub, tmp_path: Path) -> None:
    found = ask(fetch(), hub, tmp_path)
    hub.stop()
    assert ask(fetch(), hub, tmp_path) == found
    line = ask(fetch("hf-hub:someone/other"), hub, tmp_path)
    assert line.startswith(f"{hub.url()} cannot be reached for someone/other: ConnectError")
    assert line.endswith("Fix: check the connection or HF_ENDPOINT, or pass weights as a file (--weights FILE)")


def test_a_transfer_that_breaks_off_is_continued_where_it_stopped(hub: Hub, tmp_path: Path) -> None:
    content = safetensors_bytes({"fc.weight": np.arange(3 * CHUNK // 4, dtype=np.float32)})
    hub.repositories[REPOSITORY]["model.safetensors"] = content
    hub.cuts = [2 * CHUNK + 1000]
    path, _ = ask(fetch(), hub, tmp_path)
    assert Path(path).read_bytes() == content
    assert hub.transfers() == [None, f"bytes={2 * CHUNK}-"]


def test_a_file_that_changed_in_the_cache_is_found_by_its_hash(hub: Hub, tmp_path: Path) -> None:
    path, _ = ask(fetch(), hub, tmp_path)
    kept = Path(path).resolve()
    kept.chmod(0o644)
    kept.write_bytes(WEIGHTS[:-1] + b"\x01")  # still a valid file
    line = ask(fetch(), hub, tmp_path)
    assert line.startswith(f"{kept} is damaged: its SHA-256 is ")
    assert "Fix: delete that file and run again" in line
    kept.unlink()
    assert ask(fetch(), hub, tmp_path)[0] == path
    assert Path(path).read_bytes() == WEIGHTS


def test_where_there_are_no_safetensors_the_other_file_is_taken_and_its_pickle_is_not_run(
    hub: Hub, tmp_path: Path
) -> None:
    planted = tmp_path / "planted"
    hostile = (
        b"\x80\x02cposix\nsystem\nX" + len(text := f"touch {planted}".encode()).to_bytes(4, "little") + text + b"\x85R."
    )
    hub.repositories[REPOSITORY] = {"pytorch_model.bin": hostile}
    line = ask(fetch() + "\nfrom tlx.models.weights import read_checkpoint\nread_checkpoint(h.path)", hub, tmp_path)
    assert "pytorch_model.bin" in line
    assert not planted.exists()


@pytest.mark.parametrize(
    ("source", "start", "fix"),
    [
        ("hf-hub:someone/none", "{url} has no repository 'someone/none', or keeps it private", "hf auth login"),
        ("hf-hub:someone/gated", "{url}/someone/gated is gated", "accept its terms on that page, then: hf auth login"),
        ("hf-hub:someone/net@v9", "{url}/someone/net has no revision 'v9'", "name a branch, a tag or a commit of it"),
        (
            "hf-hub:someone/empty",
            "{url}/someone/empty holds neither model.safetensors nor pytorch_model.bin",
            "name another repository",
        ),
    ],
)
def test_what_the_hub_refuses_is_one_line(hub: Hub, tmp_path: Path, source: str, start: str, fix: str) -> None:
    hub.repositories.update({"someone/gated": {"model.safetensors": WEIGHTS}, "someone/empty": {}})
    hub.gated = {"someone/gated"}
    line = ask(fetch(source), hub, tmp_path)
    assert line.startswith(start.format(url=hub.url()))
    assert fix in line
    assert "\n" not in line


def test_a_hub_that_fails_is_one_line(hub: Hub, tmp_path: Path) -> None:
    hub.broken = True
    line = ask(fetch(), hub, tmp_path)
    assert line.startswith(f"{hub.url()}")
    assert "500" in line


@pytest.mark.parametrize("source", ["hf-hub:", "hf-hub:net", "hf-hub:a/b/c", "hf-hub:../net", "hf-hub:someone/net x"])
def test_a_source_of_another_form_is_refused_before_anything_is_asked(source: str) -> None:
    with pytest.raises(WeightsError, match="expected hf-hub:OWNER/NAME"):
        fetch_hosted(source, False)
