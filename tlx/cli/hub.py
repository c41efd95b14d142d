"""Train and use: the commands that share a model on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from tlx.cli.options import Json, print_json
from tlx.errors import printable
from tlx.streams import tell


def push(
    run_dir: Path,
    repository: str,
    /,
    *,
    private: Annotated[bool, Parameter(negative="")] = False,
    dry: Annotated[bool, Parameter(negative="")] = False,
    json: Json = False,
) -> None:
    """Put a run's model on the Hugging Face Hub, as timm reads it, with a model card.

    Parameters
    ----------
    run_dir:
        A folder that `tlx run` wrote, on either backend.
    repository:
        USER/NAME; it is made if it is not there. Log in before with `hf auth login`, or set HF_TOKEN.
    private:
        Make it private.
    dry:
        Send nothing, and print the card.
    """
    import tlx

    pushed = tlx.push(run_dir, repository, private=private, dry=dry)
    for note in pushed.notes:
        tell(f"note: {printable(note)}")
    if json:
        facts = {"repository": pushed.repository, "url": pushed.url, "commit": pushed.commit or None}
        print_json({**facts, "timm": pushed.timm or None, "notes": list(pushed.notes), "card": pushed.card})
    elif dry:
        print(pushed.card, end="")
    else:
        print(pushed.url)


def pull(
    repository: str,
    /,
    *,
    folder: Annotated[Path | None, Parameter(name=("--folder", "-o"))] = None,
    json: Json = False,
) -> None:
    """Take a model from the Hugging Face Hub into a folder that predict, evaluate, export and --weights take.

    Parameters
    ----------
    repository:
        USER/NAME of a model of timm or of tlx, or USER/NAME@REVISION.
    folder:
        A new folder. [default: NAME]
    """
    import tlx

    path = tlx.pull(repository, folder)
    if json:
        print_json({"repository": repository, "folder": str(path)})
    else:
        print(printable(str(path)))
