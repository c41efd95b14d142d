"""Photos of every format with hostile content."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from support.hostile import check, hostile_inputs
from support.hostile_data import RUN, SAMPLES, mutated, png, workplace
from support.hostile_photos import BOMBS, SEEDS

SUFFIXES = (".jpg", ".png", ".webp", ".tif", ".gif", ".bmp", ".ppm", ".avif", ".jp2", ".heic", ".pbm", ".jfif", ".dib")


contents = st.one_of(
    st.sampled_from(sorted(BOMBS)).map(BOMBS.__getitem__),
    st.sampled_from(sorted(SEEDS)).map(SEEDS.__getitem__).flatmap(lambda content: st.just(content) | mutated(content)),
    st.sampled_from(sorted(SEEDS)).map(SEEDS.__getitem__).flatmap(mutated),
    st.binary(),
)


@hostile_inputs
@given(photos=st.lists(contents, min_size=1, max_size=3), suffix=st.sampled_from(SUFFIXES), json=st.booleans())
def test_photos_to_predict(photos: list[bytes], suffix: str, json: bool, run_dir: Path, tmp_path: Path) -> None:
    with workplace(tmp_path) as folder:
        (folder / "p").mkdir()
        (folder / "p" / "0.png").write_bytes(png())
        for i, content in enumerate(photos, 1):
            (folder / "p" / f"{i}{suffix}").write_bytes(content)
        outcome = check(
            "photos to predict", "predict", str(run_dir), "p", *(("--json",) if json else ()), folder=folder
        )
        assert outcome.code == 0  # what cannot be read is listed, and the rest is predicted
        if not json:
            assert len(outcome.out.splitlines()) + outcome.err.count("not read: ") == 1 + len(photos)


@hostile_inputs
@given(photos=st.lists(contents, min_size=1, max_size=3), suffix=st.sampled_from(SUFFIXES), json=st.booleans())
def test_photos_to_explain(photos: list[bytes], suffix: str, json: bool, run_dir: Path, tmp_path: Path) -> None:
    with workplace(tmp_path) as folder:
        (folder / "p").mkdir()
        (folder / "p" / "0.png").write_bytes(png())
        for i, content in enumerate(photos, 1):
            (folder / "p" / f"{i}{suffix}").write_bytes(content)
        options = ("--output", "out", *(("--json",) if json else ()))
        writes = ("out",)
        outcome = check("photos to explain", "explain", str(run_dir), "p", *options, folder=folder, writes=writes)
        assert outcome.code == 0  # what cannot be read is listed, and the rest is explained
        if not json:
            assert len(outcome.out.splitlines()) == len(list((folder / "out").iterdir()))


@hostile_inputs
@given(
    photos=st.lists(contents, min_size=1, max_size=2),
    suffix=st.sampled_from(SUFFIXES),
    on_bad=st.sampled_from(("error", "skip")),
    max_pixels=st.sampled_from(("128000000", "1000", "1")),
)
def test_photos_to_train_on(photos: list[bytes], suffix: str, on_bad: str, max_pixels: str, tmp_path: Path) -> None:
    with workplace(tmp_path) as folder:
        for i in range(SAMPLES):
            (folder / "p" / str(i % 2)).mkdir(parents=True, exist_ok=True)
            (folder / "p" / str(i % 2) / f"{i}.png").write_bytes(png())
        for i, content in enumerate(photos, SAMPLES):
            (folder / "p" / str(i % 2) / f"{i}{suffix}").write_bytes(content)
        options = ("--on-bad-image", on_bad, "--max-pixels", max_pixels)
        check("photos to train on", "run", "--data", "p", *RUN, *options, folder=folder)
