"""Diagnosis of what lies on disk: a run, one of its checkpoints, or a file of features."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twinblock.assembly.build import Objects
from twinblock.assembly.plan import make_plan
from twinblock.assembly.views import views_of
from twinblock.config.recipes import from_yaml
from twinblock.config.schema import Config
from twinblock.core.device import best_device
from twinblock.core.errors import InputError, one_line
from twinblock.core.files import expanded
from twinblock.core.seeding import order
from twinblock.core.settings import own_settings
from twinblock.data.training import chosen, split_of
from twinblock.data.values import seen_as
from twinblock.diagnosis.measures import indicators, lidar
from twinblock.diagnosis.monitor import Monitor, held_out
from twinblock.diagnosis.verdict import Verdict, judge, verdict, worst
from twinblock.runs import checkpoint
from twinblock.runs.metrics import BESIDE
from twinblock.runs.run import Run
from twinblock.runs.state import restored

LIDAR = 100, 10  # images and views of each, as in Thilak et al. 2024, section 5
MOST = 4096  # rows of a file that are looked at: all pairs of them are compared

FIELDS = "state", "headline", "evidence", "advice"  # of a verdict

MEANINGS = {  # what each indicator is, and what it is where everything has collapsed
    "positive_cosine": ("cosine within images", "1"),
    "negative_cosine": ("cosine between images", "1"),
    "std": ("std per dimension", "0"),
    "effective_rank": ("effective rank (RankMe)", "1"),
    "centred_rank": ("centred effective rank", "few"),
    "lidar": ("LiDAR", "few"),
    "alignment": ("alignment", "0"),
    "uniformity": ("uniformity", "0"),
    "feature_norm": ("length of a row", "-"),
    "dead_share": ("dead dimensions", "1"),
    "dimensions": ("dimensions", "-"),
    "samples": ("images", "-"),
    "prototypes": ("prototypes", "-"),
    "used": ("prototypes in use", "1"),
    "uncertainty": ("entropy of an image's shares, 1: all alike", "0 or 1"),
    "sample_knn": ("sample kNN %", "chance"),
}


@dataclass(frozen=True)
class Diagnosis:
    """For each Learner the indicators of its outputs and a verdict; `str()` gives the verdicts in words.

    `judgement`: the verdict on the whole, which for a finished run is that of its `result.json`.
    """

    what: str
    outputs: list[dict[str, dict[str, float]]]  # by Learner, then encoder, projector, predictor
    verdicts: list[Verdict]
    judgement: Verdict

    def tables(self) -> list[tuple[str, list[dict[str, str]]]]:
        """A title and rows for each Learner: one row an indicator, one column an output."""
        return [(self._title(i), indicator_rows(outputs)) for i, outputs in enumerate(self.outputs)]

    def __str__(self) -> str:
        lines = [f"{self._title(i)}: {_sentence(v)}" for i, v in enumerate(self.verdicts)]
        return "\n".join([*lines, f"{self.what}: {_sentence(self.judgement)}"] if len(lines) > 1 else lines)

    def _title(self, i: int) -> str:
        return f"{self.what}, block {i + 1}" if len(self.outputs) > 1 else self.what


@own_settings()
def diagnose(what: Run | str | Path | np.ndarray | Tensor, data: Any = None, **objects: Any) -> Diagnosis:
    """Measure every indicator of collapse and give a verdict, for a run, a checkpoint, or features.

    `what`: a run, or `checkpoint/*.safetensors` in it, for all outputs of all Learners and a verdict on their history;
    `encoder.safetensors`, for the output of the encoder; features (rows, dimensions), or (2, rows, dimensions) for two
    views of the same images, as `.npy` or in memory. `data`: images other than the run's, by source or as `pretrain`
    takes them. `objects`: your own parts that the run was made with, as `encoder=module` or `learner=MyLearner`.
    Nothing is unpickled. Raises InputError for an unreadable file, for NaN, and for a checkpoint of another network.
    """
    if isinstance(what, np.ndarray | Tensor):
        return _of_features(torch.as_tensor(what), "features")
    path = what.path if isinstance(what, Run) else expanded(what)
    if path.suffix in (".npy", ".npz"):
        return _of_features(_read_features(path), str(path))
    if path.is_dir():
        run = Run.open(what, **objects) if isinstance(what, Run) else Run.open(path, **objects)
        return _of_run(run, *checkpoint.newest(run.checkpoints), data, last=True)
    if path.suffix == ".safetensors" and path.is_file():
        home = path.parent.parent
        if path.parent.name == "checkpoint" and (home / "config.yaml").is_file():
            return _of_run(Run(home, **objects), path, checkpoint.read(path), data, last=path.name == checkpoint.LAST)
        return _of_encoder(path, data, objects)
    if not path.exists():
        raise InputError(f"nothing to diagnose at {path}: there is no such file or folder")
    raise InputError(f"{path}: give the folder of a run, a .safetensors checkpoint or a .npy or .npz file of features")


def _of_run(
    run: Run,
    file: Path,
    held: tuple[Mapping[str, Tensor], Mapping[str, Any]],
    data: Any,
    last: bool,
) -> Diagnosis:
    """`held`: what the file holds; `last`: where the history of the run ends."""
    config = run.config
    monitor = _monitor(config, file, *held, data, run.objects)
    measures = _measure(monitor)
    name = str(run.path if last else file)
    if not last or data is not None:  # the history is of the run's end, and of its own images
        return _of_rows(name, measures, config)
    if (judged := _judged(run, len(measures))) is not None:
        return Diagnosis(name, measures, *judged)
    rows = run.metrics()
    if not all(run.history(i, start, rows) for i, start in enumerate(monitor.starts)):
        return _of_rows(name, measures, config)
    parts = judge(rows, monitor.starts, config, finished=run.finished)
    return Diagnosis(name, measures, parts, worst(parts))


def _judged(run: Run, learners: int) -> tuple[list[Verdict], Verdict] | None:
    """The verdicts that a finished run ended with, on its Learners and on the whole; None for one of version 0.1."""
    result = run.result
    if result is None or "learners" not in result:
        return None
    try:
        whole, *parts = (Verdict(*(str(one[f]) for f in FIELDS)) for one in (result, *result["learners"]))
    except (KeyError, TypeError):
        parts, whole = [], None
    if whole is None or len(parts) != learners:
        raise InputError(f"{run.path / 'result.json'} is damaged; delete it and run again")
    return parts, whole


def _of_rows(name: str, measures: list[dict[str, Any]], config: Config | None) -> Diagnosis:
    """By what was measured just now, with no history."""
    verdicts = [verdict([row], finished=True, config=config) for row in measures]
    if config is None:  # features of anything: where they are well there is no training to lengthen
        verdicts = [replace(v, advice="") if v.state == "healthy" else v for v in verdicts]
    return Diagnosis(name, measures, verdicts, worst(verdicts))


def _of_encoder(file: Path, data: Any, objects: Objects) -> Diagnosis:
    tensors, meta = checkpoint.read(file)
    if "config" not in meta:
        raise InputError(f"{file} names no config; give the folder of its run")
    try:
        config = from_yaml(str(meta["config"]))
    except ValueError as error:
        raise InputError(f"{file}: its config is damaged ({one_line(error)})") from None
    monitor = _monitor(
        config, file, {f"encoder.{name}": tensor for name, tensor in tensors.items()}, meta, data, objects
    )
    measures = [{name: row[name] for name in ("encoder", "sample_knn") if name in row} for row in _measure(monitor)]
    run = Run(file.parent)
    of_run = data is None and file.name == "encoder.safetensors" and run.begun
    if of_run and (judged := _judged(run, len(measures))) is not None:
        return Diagnosis(str(file), measures, *judged)
    return _of_rows(str(file), measures, config)


def _monitor(
    config: Config,
    file: Path,
    tensors: Mapping[str, Tensor],
    meta: Mapping[str, Any],
    data: Any,
    objects: Objects,
) -> Monitor:
    """The monitor of a run's Learners as a file has them; heads stay untrained where it holds none."""
    source, images = chosen(config.data, data, objects.get("data"))
    if source.size != config.data.size:
        raise InputError(f"data.size={source.size}: a diagnosis sees images as the training did; leave data.size out")
    images = split_of(source) if images is None else images
    assert images is not None and config.data.size is not None, "every source has a training split"
    config = seen_as(config, source, images)
    _, learners = restored(config, file, tensors, meta, objects)
    device = best_device()
    for learner in learners:
        learner.to(device, torch.float64 if config.train.precision == "fp64" else torch.float32)
    epoch_steps = meta.get("epoch_steps", 1)  # of the run's own images
    plan = make_plan(config.scope, len(learners), config.train.length.steps(epoch_steps), epoch_steps)
    views = views_of(config)
    return Monitor(learners, held_out(source, images), views, config, device, plan)


def _measure(monitor: Monitor) -> list[dict[str, Any]]:
    measures = [{name: value for name, value in row.items() if name not in BESIDE} for row in monitor.measure()]
    images, views = LIDAR
    with torch.no_grad():
        for row, outputs in zip(measures, monitor.outputs(range(views), images), strict=True):
            for name, z in outputs.items():
                if z[0].ndim == 1:
                    continue
                rows = torch.stack(z, 1).flatten(0, 1).cpu().double()
                row[name]["lidar"] = float(lidar(rows, views)) if rows.isfinite().all() else math.nan
    return measures


def _of_features(z: Tensor, name: str) -> Diagnosis:
    if z.ndim not in (2, 3) or (z.ndim == 3 and len(z) != 2):
        raise InputError(
            f"{name} has shape {tuple(z.shape)}; features are (rows, dimensions), of two views (2, rows, dimensions)"
        )
    if z.is_complex():
        raise InputError(f"{name} holds complex numbers; features are real")
    views = (z[None] if z.ndim == 2 else z).float()
    bad = int((~views.isfinite()).any(2).sum())
    if bad:
        raise InputError(f"{name}: {bad} of {views.shape[0] * views.shape[1]} rows hold NaN or infinity")
    if views.shape[1] > MOST:
        views = views[:, np.sort(order(0, 0, views.shape[1])[:MOST])]
    measures = {"encoder": indicators(*views)}
    return _of_rows(name, [measures], None)


def _read_features(path: Path) -> Tensor:
    try:
        read = np.load(path, allow_pickle=False)
        return torch.from_numpy(read if isinstance(read, np.ndarray) else read["features"])
    except KeyError:
        raise InputError(f"{path} holds no array named features; give a .npz that embed wrote, or a .npy") from None
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise InputError(f"cannot read {path} as an array of numbers ({one_line(error)})") from None


def indicator_rows(measures: Mapping[str, Any]) -> list[dict[str, str]]:
    """What was measured of a Learner as a table: one row an indicator, one column an output."""
    outputs = {name: values for name, values in measures.items() if isinstance(values, Mapping)}
    rows = []
    for key, (title, collapsed) in MEANINGS.items():
        cells = {name: values.get(key) for name, values in outputs.items()}
        if key == "sample_knn":
            cells["encoder"] = measures.get(key)
        if any(value is not None for value in cells.values()):
            shown = {name: "-" if value is None else f"{value:.4g}" for name, value in cells.items()}
            rows.append({"indicator": title, **shown, "collapsed": collapsed})
    return rows


def _sentence(v: Verdict) -> str:
    return f"{v.headline}: {v.evidence}" + (f"; {v.advice}" if v.advice else "")
