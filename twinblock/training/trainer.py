"""The loop: it takes steps, looks at the embeddings, writes metrics and checkpoints, and goes on where it stopped."""

import math
import os
import signal as signals
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from twinblock.config.compare import not_of_this_run
from twinblock.config.recipes import to_yaml
from twinblock.config.schema import Config
from twinblock.core.console import Reporter
from twinblock.core.distributed import largest, world_size
from twinblock.core.errors import Collapsed, InputError, Interrupted
from twinblock.core.later import Later
from twinblock.core.settings import fast
from twinblock.data import Images
from twinblock.diagnosis.advice import unfit
from twinblock.diagnosis.monitor import Monitor
from twinblock.runs import checkpoint
from twinblock.runs.run import Run
from twinblock.runs.starting import Start
from twinblock.runs.state import encoder_to_keep, restore_state, snapshot, state_of
from twinblock.training.compiled import uncompiled
from twinblock.training.launch import share, stop_signals
from twinblock.training.loader import Loader
from twinblock.training.loggers import Log, log_rows, make_loggers
from twinblock.training.step import TrainStep

FLUSH_EVERY = 10  # at most so many steps between two reads of losses and signals, which make a GPU wait
PATIENCE = 1.0  # seconds between them, where steps are long
LONG = 7200  # seconds that are told in advance, with what is quicker


class Trainer:
    """A run being trained. The monitor measures images of `held_out`, or of those trained on.

    `start` gives the encoder its first weights, where they are not drawn.
    """

    def __init__(
        self,
        config: Config,
        images: Images,
        fabric: Fabric,
        run: Run,
        reporter: Reporter,
        held_out: Images | None = None,
        start: Start | None = None,
    ):
        self.config, self.fabric, self.run, self.reporter = config, fabric, run, reporter
        if config.train.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is repeatable only with its own memory
            torch.use_deterministic_algorithms(True)
        elif fabric.device.type == "cuda":
            fast()
        batch = config.data.batch
        if len(images) < batch:
            raise InputError(f"{len(images)} images are fewer than a batch: set data.batch to at most {len(images)}")
        self.epoch_steps = len(images) // batch
        steps = config.train.length.steps(self.epoch_steps)
        if steps < 1:
            raise InputError(f"train.length={config.train.length} is no step at all; train for at least 1step")
        self.classes = None if images.labels is None else int(images.labels.max()) + 1
        self.train_step = TrainStep(
            config, fabric, self.classes, self.epoch_steps, steps, run.objects, start, len(images)
        )
        local, offset, spread = share(config, world_size()), self.train_step.offset, self.train_step.spread
        reads = spread is None or spread.first
        self.loader = Loader(images, config.train.seed, batch, local, offset, fabric.device, reads)
        self.encoder, self.learners = self.train_step.encoder, self.train_step.learners
        self.optimizers, self.plan = self.train_step.optimizers, self.train_step.plan
        views = self.train_step.views
        self.monitor = Monitor(self.learners, held_out or images, views, config, fabric.device, self.plan, world_size())
        self.save_every = max(1, config.train.checkpoint_every.steps(self.epoch_steps, self.plan.total))
        keep = config.train.keep
        self.keep_every = self.plan.total + 1 if keep is None else keep.steps(self.epoch_steps, self.plan.total)
        self.step, self.fingerprint = 0, images.fingerprint()
        self.loggers: list[Log] = []
        self.saving = Later()
        self.said: set[str] = set()
        if self.train_step.only_warms_up():
            reporter.warn(f"optim.warmup={config.optim.warmup} fills the training: no time is left to learn in")
        for line in unfit(config, len(images), min(phase.steps for phase in self.plan.phases)):
            reporter.warn(line)

    def fit(self) -> None:
        """Train to the end. Raises Interrupted after a signal, Collapsed where `on_collapse` is stop, InputError when
        the loss is no longer finite."""
        rows: list[dict[str, Any]] = []
        losses: list[Tensor] = []
        if self.fabric.is_global_zero:  # not before the run has its config: what they write would be in its way
            again_from = self.step if self.step < self.plan.total else None
            self.loggers += make_loggers(self.config.train.loggers, self.run.path, again_from)
        self.reporter.start(self.plan.total, self.step, self.config.data.batch)
        batches = self.loader.batches(self.step, self.plan.total)
        with stop_signals() as stop, closing(batches), closing(self.reporter), closing(self.saving):
            first, flushed, flush_at, began = self.step, self.step, self.step + 1, time.monotonic()
            while self.step < self.plan.total:
                if self.monitor.due(self.step):
                    rows.append(self.measure())
                    self.stop_if_collapsed(rows, losses)
                self.begin_epoch()
                losses.append(self.train_step(self.step, self.next_of(batches)))
                self.step += 1
                if self.step % self.keep_every == 0:
                    self.keep()
                last = self.step == self.plan.total
                saving = last or self.step % self.save_every == 0
                if last:
                    rows.append(self.measure())
                if saving or self.step == flush_at or (self.fabric.world_size == 1 and stop.asked()):
                    self.flush(rows, losses)
                    stopping = largest(stop.asked(), self.fabric.device) > 0
                    pace = largest((time.monotonic() - began) / (self.step - flushed), self.fabric.device)
                    if flushed > first:  # the first step also loads libraries and looks at untrained weights
                        self.foretell(pace)
                    flush_at = self.step + max(1, min(FLUSH_EVERY, int(PATIENCE / pace)))
                    flushed, began = self.step, time.monotonic()
                    if last or stopping:
                        self.save()
                    elif saving:
                        self.save_meanwhile()
                    if stopping and not last:
                        raise Interrupted(stop[0] if stop else signals.SIGTERM, self.step)

    def foretell(self, pace: float) -> None:
        """Say once that this will take hours, and what is quicker; `pace`: seconds of a step."""
        left = pace * (self.plan.total - self.step)
        if left > LONG and self.fabric.device.type == "cpu" and "long" not in self.said:
            self.reporter.say(
                f"this will take about {left / 3600:.0f} h; Ctrl-C loses nothing. Quicker: train.length=1h, a smaller "
                "data.size or encoder, or the recipe first_look, which takes minutes"
            )
        self.said.add("long")

    def begin_epoch(self) -> None:
        """Where an epoch begins, objectives may look at all images; what they say of them is said once."""
        with self.reading():
            lines = self.train_step.begin_epoch(self.step, self.loader.images)
        for line in lines:
            if line not in self.said:
                self.reporter.warn(line)
            self.said.add(line)

    def next_of(self, batches: Any) -> Any:
        """The next samples."""
        with self.reading():
            return next(batches)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Raises InputError where images cannot be read any more."""
        try:
            yield
        except OSError as error:
            raise InputError(
                f"cannot read the images of step {self.step} ({error.strerror or error}); "
                f"the last good state is {self.run.checkpoints}"
            ) from error

    def measure(self) -> dict[str, Any]:
        """Measure the embeddings; warn when they have become bad since the last time.

        The first process measures for all: what each decides by it must be the same.
        """
        before = self.monitor.verdict().state
        self.train_step.share_weights()
        with uncompiled(self.config.train.compile):
            measured = self.fabric.broadcast(self.monitor.measure(self.step) if self.fabric.is_global_zero else [])
        row = self.monitor.note(self.step, measured)
        now = self.monitor.verdict()
        if now.state != before and now.state in ("complete collapse", "diverging"):
            self.reporter.warn(f"step {self.step}: {now.headline}: {now.evidence}; {now.advice}")
        return row

    def stop_if_collapsed(self, rows: list[dict[str, Any]], losses: list[Tensor]) -> None:
        """Raises Collapsed, with the state saved, where the run asks to stop then."""
        if self.config.train.on_collapse == "stop" and self.monitor.collapsed:
            self.flush(rows, losses)
            self.save()
            raise Collapsed(self.step, self.monitor.verdict())

    # ---- metrics

    def flush(self, rows: list[dict[str, Any]], losses: list[Tensor]) -> None:
        """Write down losses and learning rates since the last time, and stop where a loss is not finite."""
        values = self.train_step.of_all(torch.stack(losses)).tolist() if losses else []
        start = self.step - len(values)
        bad = self._first_not_finite(values, start)
        if bad is not None:
            k, problem = bad
            values = values[:k]
            rows[:] = [row for row in rows if row["step"] <= start + k]
        rows += [
            {"step": step, "loss": row, "lr": self.train_step.rates(step)} for step, row in enumerate(values, start)
        ]
        rows.sort(key=lambda row: (row["step"], "loss" in row))
        if self.fabric.is_global_zero and rows:
            self.run.append_metrics(rows)
            log_rows(self.loggers, rows, self.reporter.warn)
        if bad is not None:
            raise self.diverged(problem)
        self.reporter.update(self.step, rows, self.monitor.words())
        rows.clear()
        losses.clear()

    def _first_not_finite(self, values: list[list[float]], start: int) -> tuple[int, str] | None:
        """The first row with a loss that is NaN or infinite, and what to say of it."""
        for k, row in enumerate(values):
            for i, loss in enumerate(row):
                if not math.isfinite(loss):
                    where = f"Learner {self.plan.at(start + k)[0].trained[i] + 1} of {len(self.learners)}"
                    return k, f"the loss of {where} is {loss} at step {start + k}"
        return None

    def diverged(self, what: str) -> InputError:
        """The end of a training that cannot be mended by going on."""
        self.saving.close()
        last = self.run.checkpoints / checkpoint.LAST
        kept = f"the last state that was saved is {last}" if last.exists() else "nothing was saved yet"
        return InputError(f"{what}: training diverged; lower optim.lr or raise optim.warmup in another out; {kept}")

    # ---- state

    def state(self) -> dict[str, Tensor]:
        """All that the training has come to; every process must ask."""
        with self.train_step.whole():
            return state_of(self.encoder, self.learners, self.optimizers)

    def metadata(self) -> dict[str, Any]:
        """What a file of this run says of it: its config, and what `restored` needs to know of the images."""
        return {"config": to_yaml(self.config), "classes": self.classes, "epoch_steps": self.epoch_steps}

    def save(self) -> None:
        """Write a checkpoint. Raises InputError, and keeps the one before, where the state is no longer finite."""
        self.save_meanwhile()
        self.saving.wait()
        self.fabric.barrier()

    def save_meanwhile(self) -> None:
        """The same while steps are taken: the state is copied now. What goes wrong then is raised by the next one."""
        state = self.state()
        bad = next((name for name, t in state.items() if t.is_floating_point() and not t.isfinite().all()), None)
        if bad is not None:
            raise self.diverged(f"{bad} holds NaN or infinity after step {self.step}")
        if self.fabric.is_global_zero:
            copied = snapshot(state)
            meta = {"step": self.step, "data": self.fingerprint, **self.metadata()}
            self.saving.start(partial(self._write, copied, meta))

    def _write(self, state: dict[str, Tensor], meta: dict[str, Any]) -> None:
        self.run.sync_metrics()  # a checkpoint on the disk has the rows before it there, too
        checkpoint.save(self.run.checkpoints, state, meta)

    def keep(self) -> None:
        """Write the encoder as it is now to a file of its own, while steps are taken."""
        self.train_step.share_weights()
        if self.fabric.is_global_zero:
            copied = snapshot(encoder_to_keep(self.encoder, self.learners).state_dict())
            self.saving.start(partial(self.run.keep, self.step, copied, self.metadata()))

    def resume(self) -> None:
        """Go on from the newest whole checkpoint, if there is one."""
        if self.fabric.is_global_zero:
            for line in checkpoint.recover(self.run.checkpoints, partial(not_of_this_run, self.config)):
                self.reporter.warn(f"{line}; going back to the checkpoint before it")
        self.fabric.barrier()
        last = self.run.checkpoints / checkpoint.LAST
        if last.exists():
            tensors, meta = checkpoint.read(last)
            then, now = meta.get("data"), self.fingerprint
            if then is not None and then != now:
                raise InputError(
                    f"{self.config.data.source_name} holds other images than this run began with "
                    f"({now['images']:,} now, {then['images']:,} then): put those back, or choose another out"
                )
            with self.train_step.whole():
                restore_state(self.encoder, self.learners, self.optimizers, tensors, last)
            self.step = meta.get("step", 0)
            if self.step > self.plan.total:
                raise InputError(f"{last} is of step {self.step}, but this run has {self.plan.total}")
            self.reporter.say(f"resuming at step {self.step} of {self.plan.total}")
        if self.fabric.is_global_zero and self.step < self.plan.total:  # else the last measurement is in them already
            self.run.truncate_metrics(self.step)
        self.fabric.barrier()
        rows = self.run.metrics()
        if lost := self.step - sum("loss" in row for row in rows):
            self.reporter.warn(f"{self.run.path / 'metrics.jsonl'} lacks {lost} of the {self.step} steps so far")
        self.monitor.recall(row for row in rows if "diagnosis" in row)
