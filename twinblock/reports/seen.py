"""The sections of a report that show images: views, nearest neighbours, and a map of the embeddings."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from twinblock.assembly.draw import picture_of_views
from twinblock.core.errors import InputError
from twinblock.core.pictures import captions, colours, shortened
from twinblock.data import Images, take
from twinblock.data.training import chosen, training, whole
from twinblock.evaluation.embedding import embed
from twinblock.evaluation.features import pixels
from twinblock.evaluation.search import nearest
from twinblock.reports.page import COLOURS, paragraph, picture, text, uri
from twinblock.runs.run import Run

EMBEDDED, MAPPED = 5_000, 2_000  # images that are embedded at most, and those in the map
QUERIES, NEIGHBOURS = 20, 7
TILE, DOT_TILE = 96, 48  # sides of thumbnails in pixels, beside each other and in the map
INPUTS = 50  # principal components that the map is made from
WIDTH, HEIGHT, EDGE = 1000, 750, 20


@dataclass(frozen=True)
class Seen:
    """Images of a run, spread over all, and their features minus the mean, of length 1."""

    images: Images
    vectors: Float[Tensor, "n d"]
    of: int


def look(run: Run, data: Any = None) -> Seen:
    """Load and embed the images of a run, at most 5,000 of them, or those of `data`."""
    images = training(*chosen(whole(run.config.data), data, run.objects.get("data")))
    some = spread(images, EMBEDDED)
    features = embed(run, some).features
    return Seen(some, normalize(features - features.mean(0)), len(images))


def spread(images: Images, most: int) -> Images:
    """At most so many images, at equal distances."""
    if len(images) <= most:
        return images
    return take(images, np.linspace(0, len(images) - 1, most).astype(int))


def views(run: Run, seen: Seen) -> str:
    """Eight images, each beside its views."""
    drawn = picture_of_views(run.config, seen.images, "png", f"views of {seen.images.name or 'the images'}")
    alt = "Eight images, each beside the random views that the network was trained on"
    return picture(drawn, "png", alt, "The views at the start of the training.")


def neighbours(run: Run, seen: Seen) -> str:
    """Twenty images, each beside those most like it."""
    images, count = seen.images, len(seen.images)
    if count < 2:
        raise InputError("one image has no neighbours")
    asked = np.unique(np.linspace(0, count - 1, min(QUERIES, count)).astype(int))
    similar, index = nearest(seen.vectors[asked], seen.vectors, min(NEIGHBOURS + 1, count))
    tiles, rows, files = {}, [], captions(images.names, {*asked.tolist(), *index.flatten().tolist()}, 24)
    for place, query in enumerate(asked.tolist()):
        near = [(j, s) for j, s in zip(index[place].tolist(), similar[place].tolist(), strict=True) if j != query]
        near = near[:NEIGHBOURS]
        for i in (query, *(j for j, _ in near)):
            tiles[i] = tiles.get(i) or _thumbnail(run, images, i)
        cells = [_cell(images, query, files, tiles[query], "of", "")]
        cells += [_cell(images, j, files, tiles[j], _agrees(images, query, j), f"{s:.2f}") for j, s in near]
        rows.append(f'<div class="near">{"".join(cells)}</div>')
    said = "Left, in a frame, is an image; beside it are those most like it, with the cosine of their features."
    if images.labels is not None:
        said += " A neighbour of its class has a green frame, one of another class a red, dashed one."
    return paragraph(f"{said} {_of(seen)}", "soft") + "".join(rows)


def _agrees(images: Images, i: int, j: int) -> str:
    if images.labels is None or images.labels[i] < 0 or images.labels[j] < 0:
        return "unknown"
    return "same" if images.labels[i] == images.labels[j] else "other"


def _cell(images: Images, i: int, files: Mapping[int, str], tile: str, kind: str, similarity: str) -> str:
    name = _called(images, i)
    words = files.get(i, f"image {i}"), shortened(_class(images, i) or "", 24), similarity
    alt = {"of": "query", "same": "same class", "other": "another class"}.get(kind, "neighbour")
    below = "<br>".join(text(line) for line in words if line)
    return f'<div class="{kind}"><img src="{tile}" alt="{text(f"{alt}: {name}")}">{below}</div>'


def _called(images: Images, i: int) -> str:
    """The name of an image, or its number, with its class."""
    name = f"image {i}" if images.names is None else images.names[i]
    return name if (group := _class(images, i)) is None else f"{name} ({group})"


def _class(images: Images, i: int) -> str | None:
    label = -1 if images.labels is None else int(images.labels[i])
    if label < 0:
        return None
    return images.classes[label] if images.classes and label < len(images.classes) else f"class {label}"


def _of(seen: Seen) -> str:
    count = len(seen.images)
    return f"All {count:,} images." if count == seen.of else f"{count:,} of {seen.of:,} images, spread over all."


def _thumbnails(run: Run, images: Images, side: int) -> np.ndarray:
    flat = pixels(images, side, value_range=run.config.data.seen["value_range"])
    return (colours(flat.view(len(flat), -1, side, side)) * 255).round().astype(np.uint8)


def _thumbnail(run: Run, images: Images, i: int) -> str:
    return uri(_jpeg(_thumbnails(run, take(images, np.array([i])), TILE)[0], 85), "jpeg")


def _jpeg(shown: np.ndarray, quality: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(shown).save(file, "JPEG", quality=quality)
    return file.getvalue()


def places(vectors: Float[Tensor, "n d"]) -> Float[np.ndarray, "n 2"]:
    """Where a map shows each row, in [0, 1]: t-SNE of the first 50 principal components; the same every time.

    Raises InputError for fewer than five rows.
    """
    from sklearn.manifold import TSNE

    if len(vectors) < 5:
        raise InputError(f"{len(vectors)} images are too few for a map")
    x = vectors.double().numpy()
    left, scales, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
    rows = (left * scales)[:, :INPUTS]
    if rows.shape[1] < 2:
        rows = np.c_[rows, np.zeros(len(rows))]
    start: Any = 1e-4 * rows[:, :2] / max(float(rows[:, 0].std()), 1e-12)
    tsne = TSNE(perplexity=min(30.0, (len(rows) - 1) / 3), init=start, random_state=0, n_jobs=1)
    flat = tsne.fit_transform(rows)
    low, high = flat.min(0), flat.max(0)
    return (flat - low) / np.where(high > low, high - low, 1)


def chart(run: Run, seen: Seen) -> str:
    """The embeddings as a map, a dot for each image, with its thumbnail under the pointer."""
    some = spread(seen.images, MAPPED)
    rows = np.linspace(0, len(seen.images) - 1, len(some)).astype(int) if len(some) < len(seen.images) else slice(None)
    at = places(seen.vectors[rows])
    columns = int(np.ceil(np.sqrt(len(some))))
    sheet = np.full((-(-len(some) // columns) * DOT_TILE, columns * DOT_TILE, 3), 255, np.uint8)
    for i, tile in enumerate(_thumbnails(run, some, DOT_TILE)):
        top, left = i // columns * DOT_TILE, i % columns * DOT_TILE
        sheet[top : top + DOT_TILE, left : left + DOT_TILE] = tile
    kinds, legend = _kinds(some)
    radius = 6 if len(some) <= 500 else 4
    dots = "".join(
        f'<circle cx="{EDGE + x * (WIDTH - 2 * EDGE):.1f}" cy="{EDGE + y * (HEIGHT - 2 * EDGE):.1f}" r="{radius}"'
        f' class="{kinds[i]}" data-i="{i}"><title>{text(_called(some, i))}</title></circle>'
        for i, (x, y) in enumerate(at.tolist())
    )
    said = f"{len(some):,} images of {seen.of:,}; near in the map is near in the features (t-SNE), and far says little."
    shown = f"background-image: url({uri(_jpeg(sheet, 70), 'jpeg')}); width: {DOT_TILE}px; height: {DOT_TILE}px"
    return (
        f'<figure><div class="map" data-side="{DOT_TILE}" data-columns="{columns}">'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="A map of the embeddings, a dot for each image">'
        f'{dots}</svg><div class="shown" aria-hidden="true"><div class="tile" style="{shown}"></div><div></div></div>'
        f"</div><figcaption>{text(said)}</figcaption></figure>{legend}"
    )


def _kinds(images: Images) -> tuple[list[str], str]:
    """The colour of each image by its class, of many classes that of the most frequent ones, and the legend."""
    if images.labels is None:
        return [""] * len(images), ""
    labels, counts = np.unique(images.labels[images.labels >= 0], return_counts=True)
    most = len(COLOURS) if len(labels) <= len(COLOURS) else len(COLOURS) - 1
    largest = np.sort(labels[np.argsort(-counts, kind="stable")[:most]])
    colour = {int(label): f"c{i}" for i, label in enumerate(largest)}
    first = {int(label): int(np.flatnonzero(images.labels == label)[0]) for label in largest}
    items = [f'<li><i class="{colour[k]}"></i>{text(_class(images, i))}</li>' for k, i in first.items()]
    if len(labels) > len(largest) or (images.labels < 0).any():
        items.append("<li><i></i>others</li>")
    return [colour.get(int(label), "") for label in images.labels], f'<ul class="legend">{"".join(items)}</ul>'
