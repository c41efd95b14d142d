"""Train and use: the command that shows a run in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from tlx.cli.options import Json, as_json
from tlx.errors import printable


def serve(
    run_dir: Path,
    /,
    *,
    backend: str | None = None,
    port: int = 8000,
    reject: float | None = None,
    calibrated: Annotated[bool, Parameter(negative="")] = False,
    json: Json = False,
) -> None:
    """Serve a page where one drops a photo, and JSON endpoints, on this machine only; Ctrl-C ends it.

    Parameters
    ----------
    run_dir:
        A folder that `tlx run` wrote.
    backend:
        Compute on this backend instead of the one that trained.
    port:
        Where to listen at 127.0.0.1; 0: any port that is free, which is printed.
    reject:
        Answer "unknown" as `tlx predict --reject` does.
    calibrated:
        Divide the logits by the run's temperature, as `tlx predict --calibrated` does.
    """
    import tlx

    def announce(address: str) -> None:
        facts = {"run_dir": str(run_dir), "address": address}
        print(as_json(facts) if json else f"{printable(str(run_dir))} at {address} (Ctrl-C ends it)", flush=True)

    tlx.serve(run_dir, backend, port=port, reject=reject, calibrated=calibrated, on_ready=announce)
