"""Training: set up, then one loop for every method and scope. It does not know which of them it runs."""

import math
import os
import signal as signals
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from twinblock.assembly.build import encoder_of, make_learners
from twinblock.assembly.plan import Plan, make_plan
from twinblock.assembly.precision import autocast_of
from twinblock.config.compare import foreign
from twinblock.config.recipes import to_yaml
from twinblock.config.schema import Config, Optim
from twinblock.core.console import Reporter
from twinblock.core.distributed import largest, share_buffers
from twinblock.core.errors import Collapsed, InputError, Interrupted
from twinblock.core.seeding import order
from twinblock.data import Images
from twinblock.diagnosis.monitor import Monitor
from twinblock.methods.learner import Batch, Learner, Signal
from twinblock.methods.overlapping import Overlapping
from twinblock.nn.encoders import MEAN, STD, Encoder
from twinblock.optim import make_optimizer, parameter_groups, set_lr, warmup_cosine
from twinblock.runs import checkpoint
from twinblock.runs.run import Run
from twinblock.runs.state import restore_state, state_of
from twinblock.training.compiled import compile_blocks, uncompiled
from twinblock.training.launch import share, stop_signals
from twinblock.training.loggers import Log, make_loggers, tell
from twinblock.views import Views

FLUSH_EVERY = 10  # at most so many steps between two looks at losses and signals, which make a GPU wait
PATIENCE = 1.0  # seconds between them, where steps are long


class Trainer:
    """A run being trained: its parts, its state as one dictionary of tensors, and the loop.

    The monitor looks at images of `seen`, or of those trained on.
    """

    def __init__(
        self, config: Config, images: Images, fabric: Fabric, run: Run, reporter: Reporter, seen: Images | None = None
    ):
        self.config, self.images, self.fabric, self.run, self.reporter = config, images, fabric, run, reporter
        batch, world = config.data.batch, fabric.world_size
        self.local = share(config, len(images), world)
        if config.train.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is repeatable only with its own memory
            torch.use_deterministic_algorithms(True)
        self.offset = fabric.global_rank * self.local
        self.epoch_steps = len(images) // batch
        steps = config.train.length.steps(self.epoch_steps)
        if steps < 1:
            raise InputError(f"train.length={config.train.length} is no step at all; train for at least 1step")
        self.encoder: Encoder = encoder_of(config)
        self.classes = None if images.labels is None else int(images.labels.max()) + 1
        self.learners = make_learners(config, self.encoder, self.classes, autocast_of(config), self.epoch_steps)
        dtype = torch.float64 if config.train.precision == "fp64" else torch.float32
        # channels last is for GPUs: on the CPU torch 2.14 corrupts memory in such convolutions of few channels
        layout = torch.channels_last if fabric.device.type == "cuda" else torch.contiguous_format
        for module in (self.encoder, *self.learners):
            module.to(fabric.device, dtype)
            module.to(memory_format=layout)  # pyright: ignore[reportCallIssue]
        if config.train.compile:
            compile_blocks(self.learners)
        self.plan: Plan = make_plan(config.scope, len(self.learners), steps, self.epoch_steps)
        self.optims = [config.of_block(k + 1).optim for k in range(len(self.learners))]
        self.optimizers = [optimizer_of(*pair) for pair in zip(self.learners, self.optims, strict=True)]
        self.forwards = [fabric.setup_module(learner) for learner in self.learners]
        assert config.data.size is not None
        self.views = Views(config.views, config.data.size, MEAN, STD)
        self.monitor = Monitor(self.learners, seen or images, self.views, config, fabric.device, self.plan, world)
        self.save_every = max(1, config.train.checkpoint_every.steps(self.epoch_steps, self.plan.total))
        self.step, self.fingerprint = 0, images.fingerprint()
        self.loggers: list[Log] = []

    def fit(self) -> None:
        """Train to the end. Raises Interrupted after a signal, Collapsed where `on_collapse` is stop, InputError when
        the loss is no longer finite."""
        rows: list[dict[str, Any]] = []
        losses: list[Tensor] = []
        if self.fabric.is_global_zero:  # not before the run has its config: what they write would be in its way
            self.loggers += make_loggers(self.config.train.loggers, self.run.path)
        if all(self.warmup(i, phase.steps) == phase.steps for phase in self.plan.phases for i in phase.trained):
            self.reporter.warn(f"optim.warmup={self.optims[0].warmup} fills the training: no time is left to learn in")
        self.reporter.start(self.plan.total, self.step, self.config.data.batch)
        with stop_signals() as stop, ThreadPoolExecutor(1) as pool, closing(self.reporter):
            loader = self.batches(pool)
            flushed, flush_at, began = self.step, self.step + 1, time.monotonic()
            while self.step < self.plan.total:
                if self.monitor.due(self.step):
                    rows.append(self.look())
                    if self.config.train.on_collapse == "stop" and self.monitor.collapsed:
                        self.flush(rows, losses)
                        self.save()
                        raise Collapsed(self.step, self.monitor.verdict())
                losses.append(self.train_step(*next(loader)))
                self.step += 1
                last = self.step == self.plan.total
                saving = last or self.step % self.save_every == 0
                if last:
                    rows.append(self.look())
                if saving or self.step == flush_at or (stop and self.fabric.world_size == 1):
                    self.flush(rows, losses)
                    stopping = largest(bool(stop), self.fabric.device) > 0
                    pace = largest((time.monotonic() - began) / (self.step - flushed), self.fabric.device)
                    flush_at = self.step + max(1, min(FLUSH_EVERY, int(PATIENCE / pace)))
                    flushed, began = self.step, time.monotonic()
                    if saving or stopping:
                        self.save()
                    if stopping and not last:
                        raise Interrupted(stop[0] if stop else signals.SIGTERM, self.step)

    def look(self) -> dict[str, Any]:
        """Look at the embeddings; warn when they have become bad since the last look.

        The first process looks for all: what each decides by it must be the same.
        """
        before = self.monitor.verdict().state
        with uncompiled(self.config.train.compile):
            found = self.fabric.broadcast(self.monitor.measure() if self.fabric.is_global_zero else [])
        row = self.monitor.note(self.step, found)
        now = self.monitor.verdict()
        if now.state != before and now.state in ("complete collapse", "diverging"):
            self.reporter.warn(f"step {self.step}: {now.headline}: {now.evidence}; {now.advice}")
        return row

    def train_step(self, images: Tensor, labels: Tensor | None, aspect: Tensor | None) -> Tensor:
        """One step of every Learner whose turn it is; returns their losses."""
        config = self.config
        epoch, step = divmod(self.step, self.epoch_steps)
        seed, batch = config.train.seed, config.data.batch
        views = self.views(images, seed=seed, epoch=epoch, step=step, batch=batch, offset=self.offset, aspect=aspect)
        if config.train.precision == "fp64":
            views = [view.double() for view in views]
        signal, about = Signal.from_views(views), Batch(labels, (seed, self.step), self.offset)
        del views, images  # they live as long as the signal needs them
        phase, k = self.plan.at(self.step)
        losses = []
        for i, (learner, forward) in enumerate(zip(self.learners, self.forwards, strict=True)):
            if i > max(phase.trained):
                break
            if i not in phase.trained:
                assert isinstance(learner, Learner), "Learners that overlap train together"
                if k == 0:  # from here on its statistics are those that a checkpoint holds
                    share_buffers(learner)
                    self.optimizers[i].state.clear()  # it is not needed any more
                signal = learner.eval().pass_on(signal, about)
                continue
            loss, signal = forward(signal, about)  # one wrapped forward
            self.fabric.backward(loss)  # frees this Learner's graph
            self.update(i, k, phase.steps)
            losses.append(loss.detach())
        return torch.stack(losses)

    def update(self, i: int, step: int, total: int) -> None:
        """Clip, set the learning rate of this step, step; then target and objective move their own state."""
        learner, optimizer, optim, batch = self.learners[i], self.optimizers[i], self.optims[i], self.config.data.batch
        if optim.clip is not None:
            torch.nn.utils.clip_grad_norm_(learner.parameters(), optim.clip)
        peak = optim.lr * batch / 256
        set_lr(optimizer, warmup_cosine(step, total, self.warmup(i, total), peak, end=optim.end * peak))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        learner.after_step(step, total)

    def warmup(self, i: int, total: int) -> int:
        """Steps in which a Learner's learning rate rises, of the `total` in which it is trained."""
        return min(self.optims[i].warmup.steps(self.epoch_steps, total), total)

    def batches(self, pool: ThreadPoolExecutor) -> Iterator[tuple[Tensor, Tensor | None, Tensor | None]]:
        """This process's part of each global batch from the current step on; the next is gathered meanwhile."""
        upcoming = pool.submit(self.gather, self.step)
        for step in range(self.step, self.plan.total):
            try:
                ready = upcoming.result()
            except OSError as error:
                raise InputError(
                    f"cannot read the images of step {step} ({error.strerror or error}); "
                    f"the last good state is {self.run.checkpoints}"
                ) from error
            if step + 1 < self.plan.total:
                upcoming = pool.submit(self.gather, step + 1)
            images, labels, aspect = ready  # of which views take the aspect on the CPU, where they are drawn
            labels = None if labels is None else labels.to(self.fabric.device, non_blocking=True)
            yield images.to(self.fabric.device, non_blocking=True), labels, aspect

    def gather(self, step: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
        epoch, i = divmod(step, self.epoch_steps)
        if getattr(self, "_order", (None,))[0] != epoch:
            self._order = epoch, order(self.config.train.seed, epoch, len(self.images))
        start = i * self.config.data.batch + self.offset
        index = self._order[1][start : start + self.local]
        images, labels = self.images.batch(index), self.images.labels
        return (
            images.pin_memory() if self.fabric.device.type == "cuda" else images,  # else its copy would be waited for
            None if labels is None else torch.from_numpy(np.ascontiguousarray(labels[index])),
            self.images.aspects(index),
        )

    # state

    def flush(self, rows: list[dict[str, Any]], losses: list[Tensor]) -> None:
        """Look at the losses since the last time, write them down, and stop where one is not finite."""
        values = torch.stack(losses).tolist() if losses else []
        start, bad = self.step - len(values), None
        for k, row in enumerate(values):
            if wrong := [i for i, loss in enumerate(row) if not math.isfinite(loss)]:
                where = f"Learner {self.plan.at(start + k)[0].trained[wrong[0]] + 1} of {len(self.learners)}"
                bad = f"the loss of {where} is {row[wrong[0]]} at step {start + k}"
                values = values[:k]
                rows[:] = [row for row in rows if row["step"] <= start + k]
                break
        rows += [{"step": start + k, "loss": row} for k, row in enumerate(values)]
        rows.sort(key=lambda row: (row["step"], "loss" in row))
        if self.fabric.is_global_zero and rows:
            self.run.append_metrics(rows)
            tell(self.loggers, rows, self.reporter.warn)
        if bad:
            raise self.diverged(bad)
        self.reporter.update(self.step, rows, self.monitor.words())
        rows.clear()
        losses.clear()

    def state(self) -> dict[str, Tensor]:
        return state_of(self.encoder, self.learners, self.optimizers)

    def metadata(self) -> dict[str, Any]:
        """What a file of this run says of it: its config, and what `restored` needs to know of the images."""
        return {"config": to_yaml(self.config), "classes": self.classes, "epoch_steps": self.epoch_steps}

    def diverged(self, what: str) -> InputError:
        """The end of a training that cannot be mended by going on."""
        last = self.run.checkpoints / checkpoint.LAST
        kept = f"the last state that was saved is {last}" if last.exists() else "nothing was saved yet"
        return InputError(f"{what}: training diverged; lower optim.lr or raise optim.warmup in another out; {kept}")

    def save(self) -> None:
        """Write a checkpoint. Raises InputError, and keeps the one before, where the state is no longer finite."""
        state = self.state()
        bad = next((name for name, t in state.items() if t.is_floating_point() and not t.isfinite().all()), None)
        if bad is not None:
            raise self.diverged(f"{bad} holds NaN or infinity after step {self.step}")
        if self.fabric.is_global_zero:
            self.run.sync_metrics()  # a checkpoint on the disk has the rows before it there, too
            checkpoint.save(
                self.run.checkpoints, state, {"step": self.step, "data": self.fingerprint, **self.metadata()}
            )
        self.fabric.barrier()

    def resume(self) -> None:
        """Go on from the newest whole checkpoint, if there is one."""
        if self.fabric.is_global_zero:
            for line in checkpoint.recover(self.run.checkpoints, partial(foreign, self.config)):
                self.reporter.warn(f"{line}; going back to the checkpoint before it")
        self.fabric.barrier()
        last = self.run.checkpoints / checkpoint.LAST
        if last.exists():
            tensors, meta = checkpoint.read(last)
            then, now = meta.get("data"), self.fingerprint
            if then is not None and then != now:
                raise InputError(
                    f"{self.config.data.source} holds other images than this run began with ({now['images']:,} now, "
                    f"{then['images']:,} then): put those back, or choose another out"
                )
            restore_state(self.encoder, self.learners, self.optimizers, tensors, last)
            self.step = meta.get("step", 0)
            if self.step > self.plan.total:
                raise InputError(f"{last} is of step {self.step}, but this run has {self.plan.total}")
            self.reporter.say(f"resuming at step {self.step} of {self.plan.total}")
        if self.fabric.is_global_zero and self.step < self.plan.total:  # else the last look is in them already
            self.run.truncate_metrics(self.step)
        self.fabric.barrier()
        rows = self.run.metrics()
        if lost := self.step - sum("loss" in row for row in rows):
            self.reporter.warn(f"{self.run.path / 'metrics.jsonl'} lacks {lost} of the {self.step} steps so far")
        self.monitor.recall(row for row in rows if "diagnosis" in row)


def optimizer_of(learner: Learner | Overlapping, spec: Optim) -> torch.optim.Optimizer:
    bias = 1.0 if spec.lr_bias is None else spec.lr_bias / spec.lr
    groups = parameter_groups(learner, spec.weight_decay, spec.exclude_bias_and_norm, bias_lr_scale=bias)
    return make_optimizer(groups, spec.kind, lr=spec.lr, momentum=spec.momentum)
