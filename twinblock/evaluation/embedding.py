"""Embeddings: the features that a run's encoder gives for images, beside what is known of each."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from twinblock.config.schema import other_data
from twinblock.core.console import progress
from twinblock.core.errors import InputError
from twinblock.core.files import replacing, table_kind, write_table
from twinblock.data import Images, columns_of, load
from twinblock.data.training import training, whole
from twinblock.evaluation import at_size, features, seen_by
from twinblock.nn.shallow import encoder_of_block
from twinblock.runs.run import Run

OWN = "embeddings"  # files of this name in a run are its own, and are replaced


@dataclass(frozen=True)
class Embeddings:
    """Row i of `features` is of image i of `images`, which has names, labels and classes where the source has them."""

    features: Float[Tensor, "n d"]
    images: Images

    def __repr__(self) -> str:
        count, width = self.features.shape
        known = [name for name in ("names", "labels") if getattr(self.images, name) is not None]
        return f"Embeddings({count:,} images, {width} features each{', with ' if known else ''}{' and '.join(known)})"


def embed(
    run: Run | str | Path,
    data: str | Path | Mapping[str, Any] | None = None,
    *,
    split: str = "train",
    block: int | None = None,
    out: str | Path | None = None,
) -> Embeddings:
    """Features of the frozen encoder, float32, for all images of a source, by default the run's, labelled or not.

    `split`: train or test; `block`: of what this block gives, from 1 on, else of the last.
    `out`: also write them, to a new .npz, .parquet or .csv file with the columns image (its number), name (of a file,
    relative to the source), label, class, and features. `embeddings.*` in the run is replaced, another file never.
    Raises InputError for a file that cannot be written, before the work, and for features that are not finite.
    """
    run = Run.open(run)
    kind = None if out is None else _writable(Path(out), run)
    if split not in ("train", "test"):
        raise InputError(f"split={split}: should be train or test")
    config = run.config
    source = whole(config.data) if data is None else other_data(whole(config.data), data)
    encoder = run.encoder() if block is None else encoder_of_block(run.encoder(), block)
    seen = at_size(config, encoder, source.size)
    images = training(source) if split == "train" else load(source.source, source.root, "test", source.size)
    if images is None:
        raise InputError(f"split=test: {source.source} has no images for testing; leave split out")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with progress("embedding images", len(images)) as advance:
        found = features(encoder.to(device), images, advance=advance, **seen_by(seen, device))
    if not found.isfinite().all():
        raise InputError(f"the features of {run.path} hold NaN or infinity: has the encoder diverged?")
    if out is not None and kind is not None:
        with replacing(Path(out)) as file:
            write_table(file, kind, columns_of(images, np.arange(len(images))) | {"features": found.numpy()})
    return Embeddings(found, images)


def _writable(file: Path, run: Run) -> str:
    kind = table_kind(file)
    own = file.stem == OWN and file.parent.resolve() == run.path.resolve()
    if file.is_dir() or (file.exists() and not own):
        raise InputError(f"out={file} is there already; delete it or choose another name")
    if not file.parent.is_dir():
        raise InputError(f"out={file}: there is no folder {file.parent}; make it or choose another")
    return kind
