"""Weights from the Hugging Face Hub: `hf-hub:OWNER/NAME`, or `hf-hub:OWNER/NAME@REVISION`.

The hub's own client downloads them into its own cache, so HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE and the token of
`hf auth login` act as ever. What it gives is checked against the SHA-256 that the hub names the file by.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tlx.download import hash_file
from tlx.errors import BackendUnavailable, WeightsError, one_line

HUB = "hf-hub:"
FILES = ("model.safetensors", "pytorch_model.bin")  # the first first; the second is read without running its pickle
_SHA256 = re.compile(r"[0-9a-f]{64}")  # the name in the cache of a file that the hub keeps by its content
_OTHERWISE = "or pass weights as a file (--weights FILE)"


@dataclass(frozen=True, slots=True)
class Hosted:
    """A file of weights in the hub's cache, and its source with the commit, by which it is found again."""

    path: Path
    source: str


def fetch_hosted(source: str, progress: bool) -> Hosted:
    """Return the weights of a repository of the hub, from the client's cache or downloaded.

    Raises:
        WeightsError: there is no such repository, revision or file, it cannot be had, or it is not what the hub keeps.
        BackendUnavailable: the client is not installed.
    """
    repository, _, revision = source.removeprefix(HUB).partition("@")
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repository):
        raise WeightsError(f"weights is {source!r}; expected {HUB}OWNER/NAME, or {HUB}OWNER/NAME@REVISION")
    path = _download(repository, revision or None, progress)
    kept = path.resolve()
    if _SHA256.fullmatch(kept.name) and (actual := hash_file(kept)) != kept.name:
        raise WeightsError(
            f"{kept} is damaged: its SHA-256 is {actual}, and that of {path.name} of {repository} is its name",
            fix=f"delete that file and run again, {_OTHERWISE}",
        )
    return Hosted(path, f"{HUB}{repository}@{path.parent.name}")


def _download(repository: str, revision: str | None, progress: bool) -> Path:
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    except ImportError as error:
        problem = f"weights of {repository} are on the Hugging Face Hub, whose client is not installed"
        raise BackendUnavailable(problem, fix='pip install "tlx[timm]"') from error
    failure: EntryNotFoundError | None = None
    with bars(progress):
        for name in FILES:
            lost = isinstance(failure, LocalEntryNotFoundError)  # the hub cannot be asked; the cache may have the other
            try:
                return Path(hf_hub_download(repository, name, revision=revision, local_files_only=lost))
            except EntryNotFoundError as error:
                failure = failure or error
            except Exception as error:  # of the client, of what it talks to the network with, and of the disk
                raise _explained(repository, revision, error) from error
    assert failure is not None
    raise _explained(repository, revision, failure) from failure


@contextmanager
def bars(shown: bool) -> Iterator[None]:
    """Let the client show its progress, or not; the user's own setting is as before after the block."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if shown or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _explained(repository: str, revision: str | None, error: Exception) -> WeightsError:
    """Say in one line why the hub gives no weights, and what to do."""
    from huggingface_hub import constants, errors

    at, address = constants.ENDPOINT, f"{constants.ENDPOINT}/{repository}"
    if isinstance(error, errors.GatedRepoError):
        text, fix = f"{address} is gated", f"accept its terms on that page, then: hf auth login; {_OTHERWISE}"
    elif isinstance(error, errors.RevisionNotFoundError):
        text, fix = f"{address} has no revision {revision!r}", "name a branch, a tag or a commit of it, or leave it out"
    elif isinstance(error, errors.RepositoryNotFoundError):
        text, fix = f"{at} has no repository {repository!r}, or keeps it private", "check the name, or: hf auth login"
    elif isinstance(error, errors.LocalEntryNotFoundError) and constants.HF_HUB_OFFLINE:
        text = f"weights of {repository} are not in the hub's cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE is set"
        fix = f"run once without HF_HUB_OFFLINE, {_OTHERWISE}"
    elif isinstance(error, errors.LocalEntryNotFoundError):
        text = f"{at} cannot be reached for {repository}: {cause_of(error.__cause__ or error)}"
        fix = f"check the connection or HF_ENDPOINT, {_OTHERWISE}"
    elif isinstance(error, errors.EntryNotFoundError):
        text, fix = f"{address} holds neither {' nor '.join(FILES)}", "name another repository, " + _OTHERWISE
    elif isinstance(error, errors.HfHubHTTPError):
        text, fix = f"{address}: the hub answers {cause_of(error)}", f"run again later, {_OTHERWISE}"
    else:
        text = f"weights of {repository} did not arrive from {at}: {cause_of(error)}"
        fix = f"run again, which continues where it stopped, {_OTHERWISE}"
    return WeightsError(text, fix=fix)


def cause_of(error: Any) -> str:
    """Say why the hub refused, or what went wrong on the way to it."""
    response = getattr(error, "response", None)
    if response is not None and hasattr(response, "status_code"):
        return f"{response.status_code} {getattr(response, 'reason_phrase', '')}".rstrip()
    return one_line(f"{type(error).__name__}: {error}", 200)
