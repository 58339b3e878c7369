"""A run's folder: its config, checkpoints, metrics and result. Everything a run writes lies in it."""

import json
import logging
import os
import re
import shutil
import weakref
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from torch import nn

from twinblock.assembly.build import encoder_of
from twinblock.config.compare import differences
from twinblock.config.recipes import from_yaml, to_yaml
from twinblock.config.schema import Config
from twinblock.core.errors import InputError, one_line
from twinblock.core.files import expanded, replacing, same_place
from twinblock.core.files import lock as take_lock
from twinblock.core.settings import own_settings
from twinblock.nn.encoders import Encoder
from twinblock.nn.shallow import Shallow, encoder_of_block
from twinblock.runs import checkpoint
from twinblock.runs.metrics import history_of, parsed
from twinblock.runs.state import encoder_to_keep, restored

KEPT = "encoders"  # the folder of those that were kept on the way
STARTED = "started.safetensors"  # the weights that were given and training began with
log = logging.getLogger(__name__)


class Run:
    """The folder of a run.

    It holds `config.yaml`, the resolved config; `checkpoint/`; `metrics.jsonl`, a row for each step; `skipped.txt`, the
    images left out; `environment.json`, where and when it ran. A finished run also has `encoder.safetensors`,
    `result.json` and `curves.png`; an evaluated one `evaluation.json`, and a file for each source in `evaluations/`.
    `encoders/` has those that were kept on the way.
    `objects`: Python objects that its config names as parts, such as `encoder=module`.
    """

    def __init__(self, path: str | Path, **objects: Any):
        self.path, self.objects = expanded(path), {part: one for part, one in objects.items() if one is not None}
        self._release: weakref.finalize | None = None
        self._made = False

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @classmethod
    def open(cls, run: "Run | str | Path", **objects: Any) -> "Run":
        """Open an existing run, with the Python objects that it was made with. Raises InputError if there is none."""
        given = {part: one for part, one in objects.items() if one is not None}
        run = cls(run.path, **{**run.objects, **given}) if isinstance(run, Run) else cls(run, **objects)
        if not run.begun and not run.path.is_dir():
            raise InputError(f"no run at {run.path}: there is no such folder")
        if not run.begun:
            raise InputError(f"no run at {run.path}: it holds no config.yaml")
        return run

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoint"

    @property
    def config(self) -> Config:
        file = self.path / "config.yaml"
        try:
            return from_yaml(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(
                f"cannot read {file} ({one_line(error, 500)}); put it back as it was, or train in another folder"
            ) from None

    @property
    def result(self) -> dict[str, Any] | None:
        """What the finished run reported; None while it is not finished."""
        return self._json("result.json", "state", "headline", "evidence", "advice", "effective_rank", "width")

    @property
    def evaluation(self) -> dict[str, Any] | None:
        """What the last `evaluate` found; None before the first."""
        return self._json("evaluation.json")

    def evaluation_of(self, source: str, step: int | None = None) -> dict[str, Any] | None:
        """What the last `evaluate` on the images of a source found; None before the first.

        `step`: of the encoder that was kept after this step.
        """
        evaluation = self._json(evaluation_file(source, step))
        if evaluation is None and step is None and same_place((self.evaluation or {}).get("data"), source):
            return self.evaluation  # of an earlier version, which kept the last one only
        return evaluation

    @property
    def begun(self) -> bool:
        try:
            return (self.path / "config.yaml").is_file()
        except OSError as error:  # a name that is too long, a folder that may not be entered
            raise InputError(f"{self.path}: {error.strerror}") from None

    @property
    def finished(self) -> bool:
        return self.result is not None

    @property
    def failed(self) -> bool:
        """Whether the run collapsed completely or diverged, so that its encoder is of no use."""
        return (self.result or {}).get("state") in ("complete collapse", "diverging")

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of `metrics.jsonl` so far, without a last line that a running training has only half written."""
        return [row for row in map(parsed, self._lines()) if row is not None]

    def history(
        self, learner: int = -1, start: int = 0, rows: list[dict[str, Any]] | None = None
    ) -> list[dict[str, Any]]:
        """What the monitor saw of one Learner from step `start` on, in order, as `diagnosis.verdict` takes it.

        `rows`: the metrics, where they have been read already.
        """
        rows = self.metrics() if rows is None else rows
        losses = {row["step"]: row["loss"][-1] for row in rows if "loss" in row}
        measurements = history_of(rows, learner, start)
        return [row if row["step"] not in losses else {**row, "loss": losses[row["step"]]} for row in measurements]

    @property
    def kept(self) -> list[int]:
        """The steps after which an encoder was kept, in order; see `train.keep`."""
        names = (file.stem for file in (self.path / KEPT).glob("*.safetensors"))
        return sorted(int(name) for name in names if re.fullmatch(r"[0-9]+", name, re.ASCII))

    @own_settings()
    def encoder(self, step: int | None = None) -> Encoder:
        """The trained encoder, in evaluation mode; of an unfinished run, that of its last checkpoint.

        `step`: the one that was kept after this step. Raises InputError where none was.
        """
        encoder, weights = encoder_of(self.config, self.objects, one_size=True), self.path / "encoder.safetensors"
        if step is not None:
            file = self._kept(step)
            tensors, prefix = checkpoint.read(file)[0], ""
        else:
            file, (tensors, meta) = checkpoint.newest(self.checkpoints, weights)
            prefix = "" if file == weights else "encoder."
            if prefix and getattr(self.config.target, "kept", False):
                return encoder_to_keep(*restored(self.config, file, tensors, meta, self.objects)).eval()
        checkpoint.fill(encoder, tensors, file, prefix)
        return encoder.eval()

    def learners(self) -> list[Any]:
        """The Learners of the last checkpoint, in evaluation mode, on the CPU."""
        file, (tensors, meta) = checkpoint.newest(self.checkpoints)
        return [learner.eval() for learner in restored(self.config, file, tensors, meta, self.objects)[1]]

    def _kept(self, step: int) -> Path:
        if step not in self.kept:
            steps = ", ".join(map(str, self.kept)) or "none; train.keep=10epochs keeps one every 10 epochs"
            raise InputError(f"step={step}: {self.path} kept no encoder after this step; there are: {steps}")
        return self.path / KEPT / f"{step:08d}.safetensors"

    @own_settings()
    def untrained_encoder(self) -> Encoder:
        """The encoder with the weights drawn for it; one of the caller's own with those that training began with."""
        encoder = encoder_of(self.config, self.objects, one_size=True)
        if self.config.encoder.weights is None:
            self.fill_started(encoder)
        return encoder.eval()

    @own_settings()
    def starting_encoder(self) -> Encoder | None:
        """The encoder with the weights of `encoder.weights`, as training began with them; None of a run without."""
        if self.config.encoder.weights is None:
            return None
        encoder = encoder_of(self.config, self.objects, one_size=True)
        if not self.fill_started(encoder):
            raise InputError(f"{self.path} lacks {STARTED}, the weights that it began with; put it back")
        return encoder.eval()

    def fill_started(self, encoder: Encoder) -> bool:
        """Give an encoder the weights that were given to this run, if it has kept some."""
        file = self.path / STARTED
        if file.is_file():
            checkpoint.fill(encoder, checkpoint.read(file)[0], file)
        return file.is_file()

    # writing: only the first process of a run does

    def claim(self, config: Config) -> None:
        """Make the folder, or check that it belongs to this config; hold it until `release`."""
        try:
            self._made = not self.path.exists()
            self.path.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.path / ".lock", os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
            self._release = weakref.finalize(self, os.close, lock)
            files = list(self.path.iterdir())
        except OSError as error:
            raise InputError(f"out={self.path}: cannot write there ({error.strerror}); choose another folder") from None
        for path in files:  # a run from someone else must not lead out of its folder
            if path.is_symlink():
                raise InputError(f"{path} is a link to somewhere else; replace it by what it leads to, or remove it")
            if not path.is_file() and not path.is_dir():
                raise InputError(f"{path} is neither a file nor a folder; remove it")
        try:
            if not take_lock(lock):
                log.warning(f"{self.path}: this file system has no locks; start no second training in this folder")
        except BlockingIOError:
            self._made = False  # it is the other process's
            raise InputError(f"out={self.path}: another process is training there") from None
        self.agree(config, going_on=True)
        if not self.begun:
            # what a run leaves that is killed before its config is written
            others = [p for p in self.path.iterdir() if not re.fullmatch(r"\.lock|config\.yaml\.\d+\.partial", p.name)]
            if others:
                raise InputError(f"out={self.path} is not empty and holds no run; choose another folder")
        for folder in (self.path, self.checkpoints):
            for path in folder.glob("*.*.[0-9]*.partial"):  # of processes that were killed while they wrote
                path.unlink(missing_ok=True)

    def agree(self, config: Config, going_on: bool = False) -> None:
        """Raises InputError where this run, if it has begun, is of another config. `going_on`: a longer one will do."""
        if self.begun and (changed := differences(self.config, config, going_on)):
            what = "a finished run" if self.finished else "a run"
            raise InputError(
                f"out={self.path} holds {what} with another config ({'; '.join(changed)}); choose another out"
            )

    def reopen(self) -> None:
        """Take back that the run is finished: it goes on. Until it is again, its encoder is that of its checkpoint."""
        for name in ("result.json", "encoder.safetensors"):
            try:
                (self.path / name).unlink(missing_ok=True)
            except OSError as error:
                raise InputError(f"cannot remove {self.path / name} ({error.strerror})") from None

    def release(self) -> None:
        """Let other processes have the folder; take away one that was made for a run that did not begin."""
        if self._release is not None:
            if self._made and [p.name for p in self.path.iterdir()] == [".lock"]:
                shutil.rmtree(self.path, ignore_errors=True)
            self._release()

    def write_config(self, config: Config) -> None:
        self.write("config.yaml", to_yaml(config))

    def write_json(self, name: str, value: Any) -> None:
        self.write(name, json.dumps(value, indent=2) + "\n")

    def write_skipped(self, skipped) -> None:
        if skipped:
            self.write("skipped.txt", "".join(f"{name}\t{reason}\n" for name, reason in skipped))

    def keep(self, step: int, tensors: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
        """Write the encoder of this step."""
        try:
            (self.path / KEPT).mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make {self.path / KEPT} ({error.strerror})") from None
        checkpoint.write(self.path / KEPT / f"{step:08d}.safetensors", tensors, {**meta, "step": step})

    def append_metrics(self, rows: list[dict[str, Any]]) -> None:
        try:
            with open(self.path / "metrics.jsonl", "a", opener=_no_link) as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
        except OSError as error:
            raise InputError(f"cannot write {self.path / 'metrics.jsonl'}: {error.strerror}") from None

    def sync_metrics(self) -> None:
        """See to it that the rows are on the disk."""
        file = self.path / "metrics.jsonl"
        if file.is_file():
            with open(file, "rb") as rows:
                os.fsync(rows.fileno())

    def truncate_metrics(self, step: int) -> None:
        """Forget the rows from `step` on: they will be written again."""
        lines = self._lines()
        kept = [line for line in lines if (row := parsed(line)) is not None and row["step"] < step]
        if len(kept) < len(lines):
            self.write("metrics.jsonl", "".join(line + "\n" for line in kept))

    def write(self, name: str, content: str | bytes) -> None:
        """Write a file of the run, whole or not at all."""
        with replacing(self.path / name) as file:
            file.write(content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content)

    def _lines(self) -> list[str]:
        """Of the metrics."""
        return (_text(self.path / "metrics.jsonl") or "").splitlines()

    def _json(self, name: str, *needed: str) -> Any:
        """A mapping with the needed keys; None where there is no such file."""
        file = self.path / name
        try:
            text = _text(file)
            content = None if text is None else json.loads(text)
            if content is not None and not (isinstance(content, dict) and content.keys() >= {*needed}):
                raise ValueError
            return content
        except InputError:
            raise
        except (ValueError, RecursionError):
            raise InputError(f"{file} is damaged; delete it and run again") from None


def _text(file: Path) -> str | None:
    """What a file holds; None where there is none. Raises InputError where it may not be read."""
    try:
        return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else None
    except OSError as error:
        raise InputError(f"cannot read {file} ({error.strerror})") from None


def evaluation_file(source: str, step: int | None = None) -> str:
    """The file in a run that keeps what `evaluate` says of a source, told from others by its whole path.

    `step`: of the encoder that was kept after this step, in place of the last one.
    """
    place = os.path.realpath(source) if os.path.exists(source) else source
    end = re.sub(r"[^A-Za-z0-9.-]+", "_", os.path.basename(place.rstrip(os.sep)))[:40]
    digest = blake2b(place.encode("utf-8", "surrogateescape"), digest_size=4).hexdigest()
    return f"evaluations/{end}-{digest}{'' if step is None else f'-step{step}'}.json"


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o644)


def load_encoder(
    run: Run | str | Path, *, encoder: nn.Module | None = None, block: int | None = None, step: int | None = None
) -> Encoder | Shallow:
    """Load the encoder of a run, in evaluation mode: normalised images (n, 3, s, s) in, features (n, d) out.

    `encoder`: the module that the run was made with; a copy of it gets the trained weights. `block`: end the encoder
    with this block, from 1 on. `step`: the encoder that was kept after this step. Raises InputError if there is no such
    block or step, or if the module is missing or of another architecture.
    """
    trained = Run.open(run, encoder=encoder).encoder(step)
    return trained if block is None else encoder_of_block(trained, block)
