"""Commands that use a trained encoder, and the packed images."""

import os
from typing import Annotated, Any

import typer

from twinblock.cli.app import RunFolder, app, fields, written
from twinblock.core.errors import InputError

LISTED = 50  # rows that a command prints; all are in its file


@app.command()
def embed(
    run: RunFolder,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[data=...] [data.size=N] [split=test] [block=K] [step=N] [features=patches] [processes=N] "
            "[out=FILE]",
            help="Other images; their size; the features of block K, or of the encoder that was kept after step N; "
            "those of each place; how many processes; the file, whose ending chooses the format.",
        ),
    ] = None,
):
    """Write the features of images, with their names, to a file.

    The images are the run's own or data=..., the file is .npz, .parquet or .csv. Without out=FILE it is embeddings.npz
    in the run. features=patches writes those of each place, without pooling, to patches.npy in the run.
    """
    from twinblock.evaluation.embedding import OWN, PATCHES, embed

    given = fields(overrides, "data", "split", "block", "step", "features", "processes", "out")
    patches = given.get("features") == PATCHES
    out = given.pop("out", None) or os.path.join(run, f"{PATCHES}.npy" if patches else f"{OWN}.npz")
    default = patches and out == os.path.join(run, f"{PATCHES}.npy")
    count, *places, width = embed(run, out=None if default else out, **given).features.shape
    of = f"{' x '.join(map(str, places))} patches of each of" if places else "each of"
    typer.echo(f"{out}: {width} features of {of} {count:,} images")


@app.command()
def finetune(
    start: Annotated[str, typer.Argument(metavar="RUN|timm:NAME", help="A run, or published weights.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[data=...] [fraction=[0.01,0.1,1]] [seeds=3] [epochs=30] [freeze=...] [beside=timm:...] "
            "[protocol=byol] [out=DIR]",
            help="Labelled images; parts of them; repetitions; passes; modules that stay; other starts; a published "
            "protocol; the folder.",
        ),
    ] = None,
):
    """Train the whole network with a classifier.

    Compares starting points, with few labels and with many: the run's own weights, a network from scratch, and
    published weights beside=timm:NAME. An image may be of one class or of several. Writes the table and a classifier,
    which `export` takes, to out=DIR, by default finetune in the run. The same command again goes on.
    """
    from twinblock.core.console import print_table
    from twinblock.evaluation.finetune import OWN, finetune

    known = ("data", "fraction", "seeds", "epochs", "freeze", "beside", "protocol", "out")
    given = fields(overrides, *known)
    for name in ("seeds", "epochs"):
        if not isinstance(given.get(name, 1), int):
            raise InputError(f"{name}={given[name]}: give a whole number of at least 1")
    parts = given.get("fraction", 1)
    if not all(isinstance(part, int | float) for part in (parts if isinstance(parts, list) else [parts])):
        raise InputError(f"fraction={parts}: give a number or a list of them, as [0.01,1]")
    rows = finetune(start, given.pop("data", None), **given)
    print_table("fine-tuned; std: over the seeds", [_with_places(row) for row in rows])
    out = given.get("out") or (os.path.join(start, OWN) if os.path.isdir(start) else f"runs/{OWN}-{start[5:]}")
    typer.echo(
        f"{out}: {OWN}.csv and {OWN}.json; the classifier: twinblock export {os.path.join(out, 'model')} --to onnx"
    )


def _with_places(row: dict[str, Any]) -> dict[str, Any]:
    return {name: f"{row[name]:g}" if name in ("labels %", "rate") else row[name] for name in row}


@app.command()
def export(
    run: RunFolder,
    to: Annotated[str, typer.Option("--to", help="timm, torchvision, hf, onnx, program or weights.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[out=FOLDER]", help="A new folder; else export-FORM in the run.")
    ] = None,
):
    """Write the encoder as a folder that loads elsewhere.

    In timm, torchvision, Hugging Face's transformers, onnxruntime, or plain torch. Prints the two lines that load it.
    Its README.md says how an image is prepared.
    """
    from twinblock.exports.export import export

    for line in export(run, to, **fields(overrides, "out")):
        typer.echo(line)


@app.command()
def search(
    run: RunFolder,
    words: Annotated[
        list[str],
        typer.Argument(metavar="PHOTO... [data=...] [k=10]", help="Pictures; where to search; how many images each."),
    ],
):
    """Find the images most like a picture.

    Among the run's images or those of data=...; writes similar.csv and similar.png into the run. For example
    `twinblock search runs/a photo.jpg`.
    """
    from twinblock.core.console import print_table
    from twinblock.evaluation.search import search

    photos = [word for word in words if os.path.isfile(word) or "=" not in word]
    given = fields([word for word in words if word not in photos], "data", "k")
    if not isinstance(given.get("k", 1), int):
        raise InputError(f"k={given['k']}: give a whole number")
    rows = search(run, photos, **given)
    shown = [
        {"query": r["query"], "rank": r["rank"], "image": r.get("name", r["image"])} | _hundredths(r) for r in rows
    ]
    print_table("the most similar images", shown[:LISTED])
    typer.echo(written(run, "similar"))


def _hundredths(row: dict[str, Any]) -> dict[str, str]:
    return {"similarity": f"{row['similarity']:.2f}"}


@app.command()
def duplicates(
    run: RunFolder,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[data=...] [same=0.97]", help="Other images; how alike pixels of duplicates are."),
    ] = None,
):
    """Find near-duplicates among images.

    One picture in other sizes, encodings or brightness, mirrored or not. Writes duplicates.csv and duplicates.png into
    the run.
    """
    from twinblock.evaluation.search import duplicates

    given = fields(overrides, "data", "same")
    if not isinstance(given.get("same", 1), int | float):
        raise InputError(f"same={given['same']}: give a number, more than 0 and at most 1")
    rows = duplicates(run, **given)
    if not rows:
        typer.echo("no near-duplicates")
        return
    groups = rows[-1]["group"]
    typer.echo(f"{written(run, 'duplicates')}: {len(rows):,} images in {groups:,} groups of near-duplicates")


@app.command()
def pack(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="data=... [data.size=N] [data.jpeg=90] out=DIR", help="Images, how they are packed, and the folder."
        ),
    ] = None,
):
    """Pack images into a folder that is a source by itself.

    It needs neither the files nor the cache, on any machine: data=DIR. Without it, images are packed into the cache
    when they are first used.
    """
    from twinblock.data import load
    from twinblock.data.portable import SPLITS, pack

    given = fields(overrides, "data", "out")
    if missing := [name for name in ("data", "out") if name not in given]:
        raise InputError(f"pack: give {missing[0]}=...")
    out = pack(given["data"], given["out"])
    found = {split: images for split in SPLITS if (images := load(str(out), split=split)) is not None}
    counts = ", ".join(f"{len(images):,} images of {split}" for split, images in found.items())
    typer.echo(f"{out}: {counts}")


@app.command()
def cache(
    action: Annotated[str, typer.Argument(metavar="[list|verify|clear]", help="What to do.")] = "list",
    name: Annotated[str | None, typer.Argument(help="What `twinblock cache` shows as a name, or a source.")] = None,
):
    """List, verify or clear the packed images in the cache.

    `verify` compares all with their checksums; what is damaged is packed anew when it is next used.
    """
    from twinblock.core.console import print_table
    from twinblock.data.store import cache as folder
    from twinblock.data.stores import cache

    rows = cache(action, name)
    shown = [
        {**row, "name": row["name"][:12], "bytes": f"{row['bytes'] / 1e6:,.1f} MB", "images": row["images"] or ""}
        for row in rows
    ]
    if rows:
        print_table(f"packed images in {folder()}", shown)
    typer.echo(f"{len(rows)} in {folder()}, {sum(row['bytes'] for row in rows) / 1e9:,.2f} GB")
    if damaged := sum(row["state"].startswith("damaged") for row in rows):
        raise InputError(f"{damaged} of {len(rows)} are damaged; they are packed anew when they are next used")
