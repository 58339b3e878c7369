"""The images most like a picture, and near-duplicates, by the features of a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, normalize

from twinblock.core.device import best_device
from twinblock.core.errors import InputError
from twinblock.core.files import replacing, write_table
from twinblock.core.pictures import as_png, captions, colours, literal, optional_picture
from twinblock.core.settings import own_settings
from twinblock.data import Images, columns_of, take
from twinblock.data.decode import decode, quiet, reason
from twinblock.data.forms import Wanted
from twinblock.data.objects import images_from
from twinblock.data.store import say_once
from twinblock.evaluation.embedding import embed
from twinblock.evaluation.features import features, pixels, seen_by
from twinblock.evaluation.index import installed, nearest_by_index
from twinblock.evaluation.knn import CHUNK
from twinblock.runs.run import Run

CANDIDATES = 20  # neighbours of an image that may be its duplicates
SAME = 0.97  # correlation of their pixels at SIDE x SIDE, from which on they are
SIDE = 32
PAIRS = 2**40  # of a million images with each other
BLOCK = 4  # pixels of a block whose mean is compared first
FLAT = 2.0  # levels of 255: images whose pixels vary less are all alike, and compared by their mean as well
SHOWN, WIDE, TILE = 20, 8, 96  # rows of the picture, images in one of them, and their side in pixels


@own_settings()
def search(
    run: Run | str | Path,
    queries: str | Path | Sequence[str | Path],
    data: Any = None,
    *,
    k: int = 10,
    encoder: nn.Module | None = None,
) -> list[dict[str, Any]]:
    """Find the `k` images most like each query, by the cosine of features minus the mean of all features.

    `queries`: files of pictures. `data`: where to search, as `pretrain` takes it; by default the images of the run.
    A cosine of 0 means that two images are as unlike as two random images.
    Returns rows with query, rank (from 1), image (its number), name, label and class if it has them, and
    similarity; writes them to `similar.csv` in the run, and the images to `similar.png`.
    Raises InputError for a query that cannot be read, and for `k` below 1.
    """
    run = Run.open(run, encoder=encoder)
    files = [str(file) for file in ([queries] if isinstance(queries, str | Path) else queries)]
    if not files:
        raise InputError("search: give at least one picture")
    if k < 1:
        raise InputError(f"k={k}: should be at least 1")
    for file in files:  # before they are packed, where one of few is too many
        try:
            with quiet():
                decode(file, 1, 1)
        except Exception as error:  # damaged files make decoders raise anything
            raise _unreadable(file, reason(error)) from None
    asked = images_from(files, run.config.data.size, wanted=Wanted(run.config.image_shape[0]))
    if asked.skipped:
        raise _unreadable(*asked.skipped[0])
    searched = embed(run, data)
    device = best_device()
    vectors = features(run.encoder().to(device), asked, **seen_by(run.config, device))
    mean = searched.features.mean(0)
    similar, index = nearest(normalize(vectors - mean), normalize(searched.features - mean), k)
    table = columns_of(searched.images, index.flatten().numpy())
    rows = len(files), index.shape[1]
    table = {
        "query": np.repeat(np.array(files), rows[1]),
        "rank": np.tile(np.arange(1, rows[1] + 1), rows[0]),
        **table,
        "similarity": similar.flatten().numpy(),
    }
    _write(run, "similar", table)
    shown = index[:SHOWN, : WIDE - 1].numpy()
    rows_of = [[(asked, i), *((searched.images, int(j)) for j in row)] for i, row in enumerate(shown)]
    with optional_picture(run.path / "similar.png"):
        run.write("similar.png", _picture(rows_of, "a picture, and the images most like it"))
    return _rows(table)


def _unreadable(file: str, why: str) -> InputError:
    return InputError(f"{file} cannot be read ({why}); give another picture")


@own_settings()
def duplicates(
    run: Run | str | Path, data: Any = None, *, same: float = SAME, encoder: nn.Module | None = None
) -> list[dict[str, Any]]:
    """Find groups of near-duplicates: one picture in other sizes, encodings, brightness or contrast, mirrored or not.

    The features propose the 20 nearest images of each image. The pixels at 32 x 32 decide: their correlation, mirrored
    or not, is at least `same`. Such pairs connect the images of a group.
    Returns rows with group (from 1), image (its number), name, label and class if it has them; writes them to
    `duplicates.csv` in the run, and the images to `duplicates.png`. Raises InputError unless 0 < `same` <= 1.
    """
    if not 0 < same <= 1:
        raise InputError(f"same={same}: should be more than 0 and at most 1")
    run = Run.open(run, encoder=encoder)
    searched = embed(run, data)
    vectors = normalize(searched.features - searched.features.mean(0))
    _, index = nearest(vectors, vectors, CANDIDATES + 1)
    first = torch.arange(len(vectors))[:, None].expand_as(index)
    pairs = _each_once(first[first != index], index[first != index], len(vectors))
    groups = _groups(len(vectors), pairs[same_pixels(searched.images, pairs, same)].numpy())
    members = np.concatenate([np.zeros(0, np.int64), *groups])
    number = np.repeat(np.arange(1, len(groups) + 1), [len(group) for group in groups])
    table = {"group": number, **columns_of(searched.images, members)}
    _write(run, "duplicates", table)
    rows_of = [[(searched.images, int(i)) for i in group[:WIDE]] for group in groups[:SHOWN]]
    if rows_of:
        with optional_picture(run.path / "duplicates.png"):
            title = f"near-duplicates, a group in each row; {len(rows_of)} of {len(groups):,}"
            run.write("duplicates.png", _picture(rows_of, title))
    return _rows(table)


def nearest(
    queries: Float[Tensor, "q d"], rows: Float[Tensor, "n d"], k: int, pairs: int = PAIRS
) -> tuple[Float[Tensor, "q k"], Int[Tensor, "q k"]]:
    """Cosines and places of the k rows most like each query, best first; both are of length 1.

    Exact, in chunks; of more than so many `pairs` of a query and a row by an index, where faiss is installed.
    """
    if len(queries) * len(rows) > pairs:
        if installed():
            return nearest_by_index(queries, rows, min(k, len(rows)), _exact)
        say_once(f'{len(rows):,} images are compared with each other; pip install "twinblock[index]" does it sooner')
    return _exact(queries, rows, k)


def _exact(
    queries: Float[Tensor, "q d"], rows: Float[Tensor, "n d"], k: int
) -> tuple[Float[Tensor, "q k"], Int[Tensor, "q k"]]:
    parts = [(part @ rows.T).topk(min(k, len(rows))) for part in queries.split(max(1, CHUNK // len(rows)))]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])


def same_pixels(images: Images, pairs: Int[Tensor, "p 2"], same: float) -> Bool[Tensor, " p"]:
    """Whether the pixels of two images correlate by at least `same`, one of them perhaps mirrored.

    Where hardly anything varies in an image, correlation is noise: both must then be flat, and of one mean.
    """
    rows, places = pairs.unique(return_inverse=True)
    x = pixels(take(images, rows.numpy()), SIDE)
    flat = x.std(1) * 255 < FLAT
    means = x.mean(1)
    units = normalize(x - x.mean(1, keepdim=True))
    rough, rest = _rough(units)
    decided = []
    for first, second in (part.T for part in places.split(10_000)):
        both = flat[first] & flat[second] & ((means[first] - means[second]).abs() * 255 < FLAT)
        most = rest[first] * rest[second] + _correlation(rough, first, second, SIDE // BLOCK)
        close = torch.nonzero((most >= same - 1e-5) & ~flat[first] & ~flat[second])[:, 0]
        both[close] |= _correlation(units, first[close], second[close], SIDE) >= same
        decided.append(both)
    return torch.cat(decided) if decided else torch.zeros(0, dtype=torch.bool)


def _each_once(first: Int[Tensor, " p"], second: Int[Tensor, " p"], count: int) -> Int[Tensor, "q 2"]:
    """Pairs of so many images, the smaller one first; most are proposed from both sides."""
    keys = (torch.minimum(first, second) * count + torch.maximum(first, second)).unique()
    return torch.stack([keys // count, keys % count], 1)


def _rough(units: Float[Tensor, "n d"]) -> tuple[Float[Tensor, "n r"], Float[Tensor, " n"]]:
    """The part of rows of length 1 that means of blocks of pixels hold, in as many numbers, and the length of the rest.

    By Cauchy and Schwarz two rows correlate at most by the product of these parts and that of the lengths.
    """
    means = avg_pool2d(units.view(len(units), -1, SIDE, SIDE), BLOCK).flatten(1)
    rough = BLOCK * means  # so that its squares sum up to those of the part
    return rough, (1 - rough.square().sum(1)).clamp_min(0).sqrt()


def _correlation(rows: Float[Tensor, "n d"], first: Tensor, second: Tensor, side: int) -> Float[Tensor, " p"]:
    """The product of pairs of rows, which are pictures; the larger one, with the second picture mirrored or not."""
    a, b = rows[first], rows[second]
    mirrored = b.view(len(b), rows.shape[1] // side**2, side, side).flip(3).flatten(1)
    return torch.maximum((a * b).sum(1), (a * mirrored).sum(1))


def _groups(count: int, pairs: np.ndarray) -> list[np.ndarray]:
    """What pairs connect, in order of the first member; those that are alone are no group."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    _, group = connected_components(edges, directed=False)
    order = np.argsort(group, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(group[order])) + 1)
    return sorted((part for part in parts if len(part) > 1), key=lambda part: part[0])


def _write(run: Run, name: str, table: dict[str, Any]) -> None:
    with replacing(run.path / f"{name}.csv") as file:
        write_table(file, "csv", table)


def _rows(table: dict[str, Any]) -> list[dict[str, Any]]:
    columns = {name: column.tolist() if hasattr(column, "tolist") else list(column) for name, column in table.items()}
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


def _picture(rows: Sequence[Sequence[tuple[Images, int]]], title: str) -> bytes:
    """A PNG with a row of thumbnails for each of `rows`, the name of an image below it."""
    from matplotlib.figure import Figure

    columns, called = max(map(len, rows)), _called([cell for row in rows for cell in row])
    drawing = Figure(figsize=(1.4 * columns, 1.6 * len(rows) + 0.5), layout="constrained")
    drawing.suptitle(literal(title), fontsize="medium")
    for axes, row in zip(drawing.subplots(len(rows), columns, squeeze=False), rows, strict=True):
        for axis in axes:
            axis.set_axis_off()
        for axis, (images, i) in zip(axes, row, strict=False):
            thumbnail = colours(pixels(take(images, np.array([i])), TILE).view(1, -1, TILE, TILE))[0]
            axis.imshow(thumbnail, interpolation="nearest")
            axis.set_title(literal(called.get((id(images), i), "")), fontsize=6, y=-0.16)
    return as_png(drawing)


def _called(cells: Sequence[tuple[Images, int]]) -> dict[tuple[int, int], str]:
    """The caption of each image, by its set and number; of images without names none."""
    called = {}
    for images in {id(one): one for one, _ in cells}.values():
        texts = captions(images.names, [i for one, i in cells if one is images], 17)
        called |= {(id(images), i): text for i, text in texts.items()}
    return called
