"""The Hugging Face Hub's own client, as `tlx push` and `tlx pull` use it.

HF_TOKEN, HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE and the token of `hf auth login` act as ever.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from tlx.errors import BackendUnavailable, TlxError, shown
from tlx.models.hub import HUB, cause_of

NAME = re.compile(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", re.ASCII)
WEIGHTS, CONFIG, README = "model.safetensors", "config.json", "README.md"


def check_name(repository: str) -> str:
    """Return the name of a repository, without `hf-hub:`; TlxError where it is none."""
    name = repository.removeprefix(HUB)
    if not NAME.fullmatch(name) or ".." in name or "--" in name:
        raise TlxError(f"REPOSITORY is {shown(repository)}; expected USER/NAME, as on the Hugging Face Hub")
    return name


def client() -> ModuleType:
    """Import the client.

    Raises:
        BackendUnavailable: it is not installed.
    """
    try:
        import huggingface_hub
        from huggingface_hub import constants, errors  # noqa: F401 (which it has only once they are imported)
    except ImportError as error:
        problem = "the client of the Hugging Face Hub is not installed"
        raise BackendUnavailable(problem, fix='pip install "tlx[timm]"') from error
    return huggingface_hub


@contextmanager
def explained(repository: str, revision: str | None = None) -> Iterator[None]:
    """Say in one line why the hub, or the way to it, failed in the block."""
    from huggingface_hub import constants, errors

    at, address = constants.ENDPOINT, f"{constants.ENDPOINT}/{repository}"
    try:
        yield
    except TlxError:
        raise
    except errors.GatedRepoError as error:
        raise TlxError(f"{address} is gated", fix="accept its terms on that page, then: hf auth login") from error
    except errors.RevisionNotFoundError as error:
        raise TlxError(
            f"{address} has no revision {shown(revision)}", fix="name a branch, a tag or a commit"
        ) from error
    except errors.RepositoryNotFoundError as error:
        problem = f"{at} has no repository {repository!r}, or keeps it private"
        raise TlxError(problem, fix="check the name, or: hf auth login") from error
    except errors.LocalEntryNotFoundError as error:
        if constants.HF_HUB_OFFLINE:
            problem = f"{repository} is not in the hub's cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE is set"
            raise TlxError(problem, fix="pull it once without HF_HUB_OFFLINE") from error
        problem = f"{at} cannot be reached for {repository}: {cause_of(error.__cause__ or error)}"
        raise TlxError(problem, fix="check the connection or HF_ENDPOINT") from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", 0)
        fix = "use a token that may write there: hf auth login, or HF_TOKEN" if status in (401, 403) else "try later"
        raise TlxError(f"{address}: the hub answers {cause_of(error)}", fix=fix) from error
    except Exception as error:  # of what the client talks to the network with, and of the disk
        cause = cause_of(error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error)
        raise TlxError(f"{address} cannot be reached: {cause}", fix="check the connection, and try again") from error
