"""Embeddings: the features that a run's encoder gives for images, beside what is known of each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn

from twinblock.config.data import Data
from twinblock.config.schema import Config
from twinblock.core.console import progress
from twinblock.core.device import best_device
from twinblock.core.errors import InputError
from twinblock.core.files import expanded, need_free, need_writable, replacing, table_kind, write_table
from twinblock.core.settings import own_settings
from twinblock.data import Images, columns_of
from twinblock.data.training import chosen, split_of, training, whole
from twinblock.data.values import seen_as
from twinblock.evaluation import at_size, seen_by
from twinblock.evaluation.patches import Patches, need_array, write_patches
from twinblock.evaluation.processes import in_processes
from twinblock.evaluation.stored import Part, parts_of, stored_features
from twinblock.nn.encoders import Encoder
from twinblock.nn.shallow import Shallow
from twinblock.runs.run import Run, load_encoder

OWN = "embeddings"  # files of this name in a run are its own, and are replaced
POOLED, PATCHES = "pooled", "patches"


@dataclass(frozen=True)
class Embeddings:
    """Row i of `features` is of image i of `images`, which has names, labels and classes if the source has them.

    Patches have one axis or two more, their places in the image.
    """

    features: Float[Tensor, "n *places d"]
    images: Images

    def __repr__(self) -> str:
        count, *places, width = self.features.shape
        columns = [name for name in ("names", "labels") if getattr(self.images, name) is not None]
        each = f"{' x '.join(map(str, places))} patches of {width} features" if places else f"{width} features"
        return f"Embeddings({count:,} images, {each} each{', with ' if columns else ''}{' and '.join(columns)})"


@dataclass(frozen=True)
class Subject:
    """An encoder of a run, and the images that it looks at: those of a split of `source`, as `config` sees them."""

    run: Run
    encoder: Encoder | Shallow
    images: Images
    source: Data
    config: Config
    held: bool  # whether the images were a Python object

    @classmethod
    def of(cls, run: Run | str | Path, data: Any, split: str, block: int | None, step: int | None) -> "Subject":
        """Arguments as of `embed`."""
        run = Run.open(run)
        source, held = chosen(whole(run.config.data), data, run.objects.get("data"))
        encoder = load_encoder(run, block=block, step=step)
        seen = at_size(run.config, encoder, source.size)
        images = training(source, held) if split == "train" else split_of(source, "test")
        if images is None:
            raise InputError(f"split=test: {source.source_name} has no images for testing; leave split out")
        return cls(run, encoder.to(best_device()), images, source, seen_as(seen, source, images), held is not None)

    def need_names(self, processes: int) -> None:
        """Raises InputError where there are several processes and they cannot open what this one has."""
        if processes > 1 and (self.held or self.run.objects):
            raise InputError(
                f"processes={processes}: other processes see no Python objects; name the images, or leave it out"
            )

    @cached_property
    def seen(self) -> dict[str, Any]:
        """As `features` takes it."""
        return seen_by(self.config, best_device())

    @property
    def columns(self) -> dict[str, Any]:
        return columns_of(self.images, np.arange(len(self.images)))


@own_settings()
def embed(
    run: Run | str | Path,
    data: Any = None,
    *,
    split: str = "train",
    block: int | None = None,
    step: int | None = None,
    features: str = POOLED,
    encoder: nn.Module | None = None,
    out: str | Path | None = None,
    processes: int = 1,
) -> Embeddings:
    """Compute the features of the frozen encoder, float32, for all images of a source, by default the run's.

    `data`: another source, or images, as `pretrain` takes them; labels are not needed. `encoder`: the module that the
    run was made with. `split`: train or test. `block`: take the features of this block, from 1 on, not of the last.
    `step`: those of the encoder that was kept after this step (`train.keep`), not of the last one.
    `out`: also write a new .npz, .parquet or .csv file with the columns image (its number), name (of a file, relative
    to the source), label, class, and features. It replaces `embeddings.*` in the run, and no other file. The features
    are also kept in `features/` of the run, part by part: what was interrupted goes on, and nothing is computed twice.
    `features`: `pooled`, or `patches` for those of each place, which the encoder averages: (n, rows, columns, d) of a
    map, or of the tokens of a square image. They are written to an .npy file, by default `patches.npy` in the run, and
    mapped from there; a .csv file beside it has the other columns.
    `processes`: how many compute at once, with the same result; of images that are named, not held in Python.
    Raises InputError for a file that cannot be written, before the work, and for features that are not finite.
    """
    _check(split, features, processes)
    run, out = Run.open(run, encoder=encoder), None if out is None else expanded(out)
    if features == PATCHES:
        file = need_array(out or run.path / f"{PATCHES}.npy", out is None)
        return _patches(run, data, {"split": split, "block": block, "step": step}, file, processes)
    kind = None if out is None else _writable(out, run)
    subject = Subject.of(run, data, split, block, step)
    subject.need_names(processes)
    if processes > 1:
        _in_processes(subject, {"split": split, "block": block, "step": step}, processes)
    with progress("embedding images", len(subject.images), processes > 1) as advance:
        rows = stored_features(run, subject.encoder, subject.images, advance=advance, **subject.seen)
    if not rows.isfinite().all():
        raise InputError(f"the features of {run.path} hold NaN or infinity: has the encoder diverged?")
    if out is not None and kind is not None:
        with replacing(out) as file:
            write_table(file, kind, subject.columns | {"features": rows.numpy()})
    return Embeddings(rows, subject.images)


def _check(split: str, features: str, processes: int) -> None:
    if split not in ("train", "test"):
        raise InputError(f"split={split}: should be train or test")
    if features not in (POOLED, PATCHES):
        raise InputError(f"features={features}: should be {POOLED} or {PATCHES}")
    if isinstance(processes, bool) or not isinstance(processes, int) or processes < 1:
        raise InputError(f"processes={processes}: give a whole number of at least 1")


def _jobs(
    subject: Subject, which: dict[str, Any], count: int, parts: Sequence[Part], file: Path | None = None
) -> list[dict[str, Any]]:
    """Of processes that share these parts: what each is told."""
    job = {"run": str(subject.run.path), "data": subject.source.model_dump(mode="json"), **which}
    written = None if file is None else str(file)
    return [{"subject": job, "parts": parts[i::count], "file": written} for i in range(min(count, len(parts)))]


def _in_processes(subject: Subject, which: dict[str, Any], count: int) -> None:
    """Let processes compute what the run does not keep yet."""
    jobs = _jobs(subject, which, count, parts_of(subject.images, subject.seen["size"]))
    need_writable(subject.run.path)
    with progress("embedding images", len(subject.images)) as advance:
        in_processes(jobs, advance)


def _patches(run: Run, data: Any, which: dict[str, Any], file: Path, count: int) -> Embeddings:
    subject = Subject.of(run, data, **which)
    subject.need_names(count)
    patches = Patches(subject.encoder, subject.config.image_shape)
    with progress("embedding patches of images", len(subject.images)) as advance:

        def elsewhere(partial: Path, parts: Sequence[Part], note: Callable[[int], None]) -> None:
            in_processes(_jobs(subject, which, count, parts, partial), advance, note)

        by = {"elsewhere": elsewhere} if count > 1 else {}
        rows = write_patches(file, patches, subject.images, advance=advance, **by, **subject.seen)
    with replacing(file.with_suffix(".csv")) as table:
        write_table(table, "csv", subject.columns)
    return Embeddings(rows, subject.images)


def _writable(file: Path, run: Run) -> str:
    kind = table_kind(file)
    default = file.stem == OWN and file.parent.resolve() == run.path.resolve()
    need_free(file, default)
    need_writable(file.parent)
    return kind
