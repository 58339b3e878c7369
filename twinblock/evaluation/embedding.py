"""Embeddings: the features that a run's encoder gives for images, beside what is known of each."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn

from twinblock.core.console import progress
from twinblock.core.device import best_device
from twinblock.core.errors import InputError
from twinblock.core.files import expanded, need_free, need_writable, replacing, table_kind, write_table
from twinblock.core.settings import own_settings
from twinblock.data import Images, columns_of
from twinblock.data.training import chosen, split_of, training, whole
from twinblock.data.values import seen_as
from twinblock.evaluation import at_size, seen_by
from twinblock.evaluation.stored import stored_features
from twinblock.runs.run import Run, load_encoder

OWN = "embeddings"  # files of this name in a run are its own, and are replaced


@dataclass(frozen=True)
class Embeddings:
    """Row i of `features` is of image i of `images`, which has names, labels and classes if the source has them."""

    features: Float[Tensor, "n d"]
    images: Images

    def __repr__(self) -> str:
        count, width = self.features.shape
        columns = [name for name in ("names", "labels") if getattr(self.images, name) is not None]
        return (
            f"Embeddings({count:,} images, {width} features each{', with ' if columns else ''}{' and '.join(columns)})"
        )


@own_settings()
def embed(
    run: Run | str | Path,
    data: Any = None,
    *,
    split: str = "train",
    block: int | None = None,
    step: int | None = None,
    encoder: nn.Module | None = None,
    out: str | Path | None = None,
) -> Embeddings:
    """Compute the features of the frozen encoder, float32, for all images of a source, by default the run's.

    `data`: another source, or images, as `pretrain` takes them; labels are not needed. `encoder`: the module that the
    run was made with. `split`: train or test. `block`: take the features of this block, from 1 on, not of the last.
    `step`: those of the encoder that was kept after this step (`train.keep`), not of the last one.
    `out`: also write a new .npz, .parquet or .csv file with the columns image (its number), name (of a file, relative
    to the source), label, class, and features. It replaces `embeddings.*` in the run, and no other file. The features
    are also kept in `features/` of the run, part by part: what was interrupted goes on, and nothing is computed twice.
    Raises InputError for a file that cannot be written, before the work, and for features that are not finite.
    """
    run, out = Run.open(run, encoder=encoder), None if out is None else expanded(out)
    kind = None if out is None else _writable(out, run)
    if split not in ("train", "test"):
        raise InputError(f"split={split}: should be train or test")
    config = run.config
    source, held = chosen(whole(config.data), data, run.objects.get("data"))
    trained = load_encoder(run, block=block, step=step)
    seen = at_size(config, trained, source.size)
    images = training(source, held) if split == "train" else split_of(source, "test")
    if images is None:
        raise InputError(f"split=test: {source.source_name} has no images for testing; leave split out")
    seen, device = seen_as(seen, source, images), best_device()
    with progress("embedding images", len(images)) as advance:
        rows = stored_features(run, trained.to(device), images, advance=advance, **seen_by(seen, device))
    if not rows.isfinite().all():
        raise InputError(f"the features of {run.path} hold NaN or infinity: has the encoder diverged?")
    if out is not None and kind is not None:
        with replacing(out) as file:
            write_table(file, kind, columns_of(images, np.arange(len(images))) | {"features": rows.numpy()})
    return Embeddings(rows, images)


def _writable(file: Path, run: Run) -> str:
    kind = table_kind(file)
    default = file.stem == OWN and file.parent.resolve() == run.path.resolve()
    need_free(file, default)
    need_writable(file.parent)
    return kind
