"""Files of decisions that are no such file, or decide what they cannot: `tlx run --fixes`."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from support.hostile import check, hostile_inputs
from support.hostile_data import RUN, mutated, workplace

PHOTOS = [f"{name}/{i:02}.png" for name in ("ant", "bee") for i in range(10)]
HEADER = ("part", "path", "problem", "label", "suggested", "decision", "sure", "group", "content")
HEADERS = (HEADER, HEADER[:2], ("part", "path", "decision"), HEADER[::-1], ("part",) * 9, ("", *HEADER[1:]), ())
PARTS = ("all", "all", "all", "train", "val", "test", "", " all", "ALL", "al\x1b[31ml", "\ud800")
PATHS = (
    *PHOTOS[:6],
    *("", ".", "..", "/", "ant", "ant/00.png/", "./ant/00.png", "../photos/ant/00.png", "/etc/passwd", "/dev/zero"),
    *("ant/99.png", "ant/\ud800.png", "ant/00.png\0", "x" * 5000, "\x1b[2J", "\u202egnp", "a\nb", "=1+1", "~nobody"),
)
DECISIONS = ("keep", "drop", "relabel", " DROP ", "Relabel", "", "delete", "drop\0", "\x1b[31mdrop", "d" * 5000)
SUGGESTED = ("bee", "ant", "", "cat", "Bee", "bee ", "0", "\ud800", "\x1b[2J", "\u2028", "b" * 5000)
CONTENTS = ("", "0" * 32, "x", "f" * 5000, "\x1b[0m")


@st.composite
def decisions(draw: st.DrawFn) -> bytes:
    """A table of decisions, right but for some of its cells."""
    header = draw(st.sampled_from((HEADER,) * 6 + HEADERS))
    rows: list[list[str]] = [list(header)]
    for _ in range(draw(st.sampled_from((1, 1, 2, 3, 20)))):
        hostile = draw(st.sampled_from((False, True)))
        row = {
            "part": draw(st.sampled_from(PARTS) | st.text()) if hostile else "all",
            "path": draw(st.sampled_from(PATHS) | st.text()) if hostile else draw(st.sampled_from(PHOTOS)),
            "suggested": draw(st.sampled_from(SUGGESTED)) if hostile else "bee",
            "decision": draw(st.sampled_from(DECISIONS if hostile else DECISIONS[:3])),
            "content": draw(st.sampled_from(CONTENTS)) if hostile else "",
        }
        cells = [row.get(name, "") for name in header]
        rows.append(cells[: draw(st.integers(0, 9))] if hostile and draw(st.booleans()) else cells)
    text = io.StringIO()
    writer = csv.writer(text, delimiter=draw(st.sampled_from(",,,,,;\t")), escapechar="\\")
    writer.writerows(rows)
    encoding = draw(st.sampled_from(("utf-8",) * 4 + ("utf-8-sig", "utf-16", "latin-1")))
    return text.getvalue().encode(encoding, errors="replace" if encoding == "latin-1" else "surrogatepass")


@hostile_inputs
@given(content=decisions() | decisions().flatmap(mutated) | st.binary())
def test_a_file_of_decisions(content: bytes, tmp_path: Path) -> None:
    with workplace(tmp_path) as folder:
        for i, name in enumerate(PHOTOS):
            path = folder / "photos" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (9, 8), (12 * i, 99, 7)).save(path)
        (folder / "fixes.csv").write_bytes(content)
        check("decisions", "run", "--data", "photos", "--fixes", "fixes.csv", *RUN, folder=folder)
