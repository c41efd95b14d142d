"""Train and use: the command that takes a run's model elsewhere."""

from __future__ import annotations

from pathlib import Path

from tlx.cli.options import Json, print_json
from tlx.errors import printable
from tlx.streams import tell


def export(run_dir: Path, out: str, /, *, json: Json = False) -> None:
    """Write a run's model for use without tlx, and print the code that loads it and classifies a photo.

    Parameters
    ----------
    run_dir:
        A folder that `tlx run` wrote, on either backend.
    out:
        What to write: NAME.pth for torch.load, NAME.safetensors, NAME.onnx (needs tlx[onnx]), or a name without a
        suffix for a folder that oneflow.load reads.
    """
    import tlx

    exported = tlx.export(run_dir, out)
    for line in (exported.check, f"written: {printable(str(exported.out))}"):
        if line:
            tell(line)
    if json:
        facts = {"run_dir": str(run_dir), "out": str(exported.out), "format": exported.format}
        print_json({**facts, "check": exported.check or None, "code": exported.code})
    else:
        print(exported.code, end="")
