"""Look at results: the commands on vectors of images, and the one that draws images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from tlx.cli.options import Json, print_json
from tlx.errors import printable

Out = Annotated[Path, Parameter(name=["--output", "-o"])]


def embed(
    source: str,
    data: str,
    /,
    *,
    out: Out,
    backend: str | None = None,
    weights: str | None = None,
    dtype: str = "float32",
    shard: str | None = None,
    on_bad_image: str | None = None,
    json: Json = False,
) -> None:
    """Write a vector for each image, what enters a model's head. Stopped or killed, it goes on when it is repeated.

    Parameters
    ----------
    source:
        A folder that `tlx run` wrote, or the name of a model: see `tlx models`.
    data:
        Whatever `tlx run --data` takes, every part of it; or a photo, or a folder of photos without labels.
    out:
        The .parquet file: index, path, label, part, vector.
    backend:
        Compute on this backend. [default: the one that trained; of a model by its name torch]
    weights:
        Of a model by its name, as `tlx run --weights` takes them. [default: imagenet]
    dtype:
        Of the numbers: float32 or float16.
    shard:
        Embed only one of several shards, such as 3/16 for the third of sixteen.
    on_bad_image:
        What becomes of images that cannot be read: error or skip. [default: as the run's recipe says, or error]
    """
    import tlx

    done = tlx.embed(
        source,
        data,
        out,
        backend=backend,
        weights=weights,
        dtype=dtype,
        shard=shard,
        on_bad_image=on_bad_image,
    )
    if json:
        print_json({"out": str(done.out), "images": done.images, "computed": done.computed, **done.facts})
    else:
        print(f"{done.images:,} vectors of {done.width} numbers in {printable(str(done.out))}")


def similar(
    source: str,
    /,
    *queries: Path,
    embeddings: Annotated[list[Path], Parameter(name="--in", consume_multiple=True, negative="")],
    top: int = 12,
    sheet: Path | None = None,
    backend: str | None = None,
    weights: str | None = None,
    json: Json = False,
) -> None:
    """Find the images that are most like others, by the cosine of their vectors.

    Parameters
    ----------
    source:
        What made the embeddings: the folder of the run, or the name of the model.
    queries:
        Photos, folders of photos, or data sets.
    embeddings:
        The file that `tlx embed` wrote, or its shards.
    top:
        Print this many for each query.
    sheet:
        Write a sheet of pictures to this .png file: each query with its neighbours.
    backend:
        Compute on this backend. [default: the one that trained; of a model by its name torch]
    weights:
        Of a model by its name, as they were for `tlx embed`.
    """
    import tlx

    rows = tlx.similar(source, queries, embeddings, top=top, sheet=sheet, backend=backend, weights=weights)
    if json:
        facts = {"source": source, "embeddings": [str(path) for path in embeddings]}
        print_json({**facts, "sheet": None if sheet is None else str(sheet), "queries": rows})
        return
    for row in rows:
        if row["error"] is not None:
            continue
        print(f"{printable(row['path'])}:")
        labels = ["-" if n["label"] is None else printable(n["label"]) for n in row["neighbors"]]
        width = min(max(map(len, labels), default=0), 30)
        for label, found in zip(labels, row["neighbors"], strict=True):  # each on a line of its own, to be copied
            print(f"  {found['cosine']:7.4f}  {label:<{width}}  {printable(found['path'])}")
    if sheet is not None:
        print(f"sheet: {printable(str(sheet))}")


def tsne(*embeddings: Path, out: Out, seed: int = 0, json: Json = False) -> None:
    """Lay embeddings out on a plane so that what is alike lies together (t-SNE), as a picture or as coordinates.

    Parameters
    ----------
    embeddings:
        The file that `tlx embed` wrote, or its shards.
    out:
        A .png file, with a colour for each label; or a .csv file: index, path, label, part, x, y.
    seed:
        The same seed gives the same map.
    """
    import tlx

    plane = tlx.tsne(embeddings, out, seed=seed)
    if json:
        facts = {"out": str(out), "points": len(plane.coordinates), "images": plane.images, "method": plane.method}
        print_json({**facts, "seed": seed})
    else:
        print(f"{len(plane.coordinates):,} points in {printable(str(out))}, by {plane.method}")


def draw(
    data: str,
    /,
    *,
    out: Out,
    run: Path | None = None,
    part: str | None = None,
    count: int = 32,
    seed: int = 0,
    data_root: Path | None = None,
) -> None:
    """Draw images of a data set in a grid, with their labels or with what a run takes them for.

    Parameters
    ----------
    data:
        Whatever `tlx run --data` takes; or a photo, or a folder of photos without labels.
    out:
        The .png file; an existing one is replaced.
    run:
        A folder that `tlx run` wrote: the captions are its classes, and mistakes have a frame of another colour.
    part:
        Take images of this part alone: train, val or test.
    count:
        How many images, at most 144.
    seed:
        The same seed draws the same images.
    data_root:
        Folder that holds a published data set, as of `tlx run`.
    """
    import tlx

    drawn = tlx.draw(data, out, run=run, part=part, count=count, seed=seed, data_root=data_root)
    print(printable(str(drawn)))
