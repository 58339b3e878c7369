"""One step of training, for every method and scope. It does not know which of them it takes."""

from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from twinblock.assembly.build import Objects, encoder_of, make_learners
from twinblock.assembly.plan import Plan, make_plan
from twinblock.assembly.precision import autocast_of
from twinblock.assembly.views import views_of
from twinblock.config.schema import Config, Optim
from twinblock.core.distributed import share_buffers
from twinblock.core.errors import InputError
from twinblock.methods.learner import Batch, Signal, parts_of
from twinblock.nn.encoders import Encoder
from twinblock.nn.layers import freeze, keep_frozen, rate_scales
from twinblock.optim import make_optimizer, parameter_groups, set_lr, warmup_cosine
from twinblock.runs.starting import Start
from twinblock.training.compiled import compile_blocks
from twinblock.training.loader import Samples


class TrainStep:
    """Encoder, Learners and optimizers of a run; called with a step's number and samples, it trains them once.

    `classes`: of the labels, where there are any. `epoch_steps`: steps in an epoch. `steps`: in the whole run. `start`:
    gives the encoder the weights of `encoder.weights`.
    """

    def __init__(
        self,
        config: Config,
        fabric: Fabric,
        classes: int | None,
        epoch_steps: int,
        steps: int,
        objects: Objects,
        start: Start | None = None,
    ):
        assert config.data.size is not None
        self.config, self.fabric, self.epoch_steps = config, fabric, epoch_steps
        self.offset = fabric.global_rank * (config.data.batch // fabric.world_size)
        self.encoder: Encoder = encoder_of(config, objects)
        assert (start is None) == (config.encoder.weights is None), "the weights to start from are found elsewhere"
        if start is not None:  # before target networks copy them
            start(self.encoder)
        for_good = str(config.encoder.freeze_for) == "100%"  # another time may end once the run is made longer
        self.thaws_at = config.encoder.freeze_for.steps(epoch_steps, steps) if config.encoder.freeze else 0
        self.frozen = freeze(self.encoder, config.encoder.freeze, for_good)
        self.learners = make_learners(config, self.encoder, classes, autocast_of(config), epoch_steps, objects)
        self._place()
        self.plan: Plan = make_plan(config.scope, len(self.learners), steps, epoch_steps)
        self.optims = [config.of_block(k + 1).optim for k in range(len(self.learners))]
        self.optimizers = [self.optimizer_of(*pair) for pair in zip(self.learners, self.optims, strict=True)]
        self.forwards = [fabric.setup_module(learner) for learner in self.learners]
        self.views = views_of(config)

    def _place(self) -> None:
        """Bring all modules to the device, in the number type and memory layout that they train in."""
        dtype = torch.float64 if self.config.train.precision == "fp64" else torch.float32
        # channels last is for GPUs: on the CPU torch 2.14 corrupts memory in such convolutions of few channels
        layout = torch.channels_last if self.fabric.device.type == "cuda" else torch.contiguous_format
        for module in (self.encoder, *self.learners):
            module.to(self.fabric.device, dtype)
            module.to(memory_format=layout)  # pyright: ignore[reportCallIssue]
        if self.config.train.compile:
            compile_blocks(self.learners)

    def __call__(self, step: int, samples: Samples) -> Tensor:
        """One step of every Learner whose turn it is; returns their losses."""
        for learner in self.learners if self.frozen else ():
            keep_frozen(learner, step < self.thaws_at)
        signal, batch = self.signal_of(step, samples)
        del samples  # the views live as long as the signal needs them
        phase, k = self.plan.at(step)
        losses = []
        for i, (learner, forward) in enumerate(zip(self.learners, self.forwards, strict=True)):
            if i > max(phase.trained):
                break
            if i not in phase.trained:
                assert len(parts_of(learner)) == 1, "Learners that overlap train together"
                if k == 0:  # from here on its statistics are those that a checkpoint holds
                    share_buffers(learner)
                    self.optimizers[i].state.clear()  # it is not needed any more
                signal = learner.eval().pass_on(signal, batch)
                continue
            loss, signal, *rest = forward(signal, batch)  # one wrapped forward
            self.fabric.backward(loss)  # frees this Learner's graph
            if step < self.thaws_at:
                self.forget_frozen(learner)
            self.update(i, k, phase.steps, *rest)
            losses.append(loss.detach())
        return torch.stack(losses)

    def signal_of(self, step: int, samples: Samples) -> tuple[Signal, Batch]:
        """The views of these samples, and what a Learner may know besides."""
        epoch, of_epoch = divmod(step, self.epoch_steps)
        seed, batch = self.config.train.seed, self.config.data.batch
        where = {"seed": seed, "epoch": epoch, "step": of_epoch, "batch": batch, "offset": self.offset}
        views = self.views(samples.pixels, aspect=samples.aspect, **where)
        if self.config.train.precision == "fp64":
            views = [view.double() for view in views]
        return Signal.from_views(views), Batch(samples.labels, (seed, step), self.offset, samples.index)

    def forget_frozen(self, learner: torch.nn.Module) -> None:
        """Take away the gradients of what is frozen for now: no optimizer moves what has none."""
        for p in learner.parameters():
            if id(p) in self.frozen:
                p.grad = None

    def update(self, i: int, step: int, total: int, *rest: Any) -> None:
        """Clip, set the learning rate of this step, step; then the Learner moves its own state, given the `rest`."""
        learner, optimizer, clip = self.learners[i], self.optimizers[i], self.optims[i].clip
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(learner.parameters(), clip)
        set_lr(optimizer, self.rate(i, step, total))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        learner.after_step(step, total, *rest)

    def optimizer_of(self, learner: torch.nn.Module, spec: Optim) -> torch.optim.Optimizer:
        if not any(p.requires_grad for p in learner.parameters()):
            raise InputError(f"encoder.freeze={list(self.config.encoder.freeze)} leaves a learner nothing to train")
        bias = 1.0 if spec.lr_bias is None else spec.lr_bias / spec.lr
        scales = rate_scales(self.encoder, self.encoder.depths, learner, spec.layer_decay)
        groups = parameter_groups(learner, spec.weight_decay, spec.exclude_bias_and_norm, bias, scales, self.frozen)
        return make_optimizer(groups, spec.kind, lr=spec.lr, momentum=spec.momentum)

    def rates(self, step: int) -> list[float]:
        """The learning rate at a step of every Learner whose turn it is, in the order of the losses."""
        phase, k = self.plan.at(step)
        return [self.rate(i, k, phase.steps) for i in phase.trained]

    def rate(self, i: int, step: int, total: int) -> float:
        """The learning rate of a Learner at step `step` of the `total` in which it is trained."""
        peak, end = self.optims[i].lr * self.config.data.batch / 256, self.optims[i].end
        return warmup_cosine(step, total, self.warmup(i, total), peak, end=end * peak)

    def warmup(self, i: int, total: int) -> int:
        """Steps in which a Learner's learning rate rises, of the `total` in which it is trained."""
        return min(self.optims[i].warmup.steps(self.epoch_steps, total), total)

    def only_warms_up(self) -> bool:
        """Whether the learning rate rises to the end, so that no time is left to learn in."""
        return all(self.warmup(i, phase.steps) == phase.steps for phase in self.plan.phases for i in phase.trained)
