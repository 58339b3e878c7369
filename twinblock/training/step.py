"""One step of training, for every method and scope. It does not know which of them it takes."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from twinblock.assembly.build import Objects, encoder_of, make_learners
from twinblock.assembly.plan import Plan, make_plan
from twinblock.assembly.precision import autocast_of
from twinblock.assembly.views import views_of
from twinblock.config.fields import Optim
from twinblock.config.schema import Config
from twinblock.core.distributed import rank, share_buffers, world_size
from twinblock.core.errors import InputError
from twinblock.data import Images
from twinblock.methods.learner import Batch, Signal, parts_of
from twinblock.nn.encoders import Encoder
from twinblock.nn.heads import Prototypes
from twinblock.nn.layers import freeze, keep_frozen, rate_scales
from twinblock.optim import (
    clip_each,
    cosine_decay,
    make_optimizer,
    parameter_groups,
    set_lr,
    set_weight_decay,
    stepwise,
    warmup_cosine,
)
from twinblock.runs.starting import Start
from twinblock.training.compiled import compile_learners
from twinblock.training.epoch import begin_epoch
from twinblock.training.loader import Samples
from twinblock.training.spread import Spread


class TrainStep:
    """Encoder, Learners and optimizers of a run; called with a step's number and samples, it trains them once.

    `classes`: of the labels, where there are any. `epoch_steps`: steps in an epoch. `steps`: in the whole run. `start`:
    gives the encoder the weights of `encoder.weights`. `images`: how many there are.
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
        images: int = 0,
    ):
        assert config.data.size is not None
        self.config, self.fabric, self.epoch_steps = config, fabric, epoch_steps
        self.encoder: Encoder = encoder_of(config, objects)
        assert (start is None) == (config.encoder.weights is None), "the weights to start from are found elsewhere"
        if start is not None:  # before target networks copy them
            start(self.encoder)
        for_good = str(config.encoder.freeze_for) == "100%"  # another time may end once the run is made longer
        self.thaws_at = config.encoder.freeze_for.steps(epoch_steps, steps) if config.encoder.freeze else 0
        self.frozen = freeze(self.encoder, config.encoder.freeze, for_good)
        self.learners = make_learners(config, self.encoder, classes, autocast_of(config), epoch_steps, objects, images)
        heads = [m for learner in self.learners for m in learner.modules() if isinstance(m, Prototypes)]
        self.prototypes = {id(p) for head in heads for p in head.parameters()}
        self._place()
        self.plan: Plan = make_plan(config.scope, len(self.learners), steps, epoch_steps)
        self.optims = [config.of_block(k + 1).optim for k in range(len(self.learners))]
        self.optimizers = [self.optimizer_of(*pair) for pair in zip(self.learners, self.optims, strict=True)]
        apart = config.train.parallel == "blocks" and fabric.world_size > 1
        self.spread = Spread(self.learners, fabric) if apart else None
        self.own = range(len(self.learners)) if self.spread is None else self.spread.own
        self.forwards = {i: fabric.setup_module(self.learners[i]) for i in self.own}
        self.offset = rank() * (config.data.batch // world_size())
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
            compile_learners(self.learners)

    def __call__(self, step: int, samples: Samples) -> Tensor:
        """One step of every Learner whose turn it is; returns their losses."""
        for learner in self.learners if self.frozen else ():
            keep_frozen(learner, step < self.thaws_at)
        phase, k = self.plan.at(step)
        last, losses = max(phase.trained), {}
        own = [i for i in self.own if i <= last]
        if not own:  # the blocks of this process learn later
            return torch.zeros(len(phase.trained), device=self.fabric.device)
        signal, batch = self.given(step, samples)
        del samples  # the views live as long as the signal needs them
        for i in own:
            loss, rest = None, []
            if i in phase.trained:
                loss, signal, *rest = self.forwards[i](signal, batch)  # one wrapped forward
            else:
                signal = self.passed_on(i, signal, batch, k)
            if self.spread is not None and i == self.own[-1] and i < last:
                self.spread.send(signal, k)
            if loss is not None:
                self.fabric.backward(loss)  # frees this Learner's graph
                self.forget_frozen(i, step, k, phase.steps)
                self.update(i, k, phase.steps, *rest)
                losses[i] = loss.detach()
        for i in {*phase.trained} - losses.keys():  # Learners of another process
            losses[i] = torch.zeros((), device=self.fabric.device)
        return torch.stack([losses[i] for i in phase.trained])

    def share_weights(self) -> None:
        """Have the weights of all Learners on all processes; where they are not spread, they are."""
        if self.spread is not None:
            self.spread.tell()

    def whole(self) -> AbstractContextManager[None]:
        """Within, this process has the state of all Learners and optimizers."""
        return nullcontext() if self.spread is None else self.spread.whole(self.optimizers)

    def of_all(self, losses: Tensor) -> Tensor:
        """The losses of some steps, of all Learners."""
        return losses if self.spread is None else self.spread.losses(losses)

    def passed_on(self, i: int, signal: Signal, batch: Batch, k: int) -> Signal:
        """The next signal of a Learner that is no longer trained, at step `k` of a phase."""
        learner = self.learners[i]
        assert len(parts_of(learner)) == 1, "Learners that overlap train together"
        if k == 0:  # from here on its statistics are those that a checkpoint holds
            share_buffers(learner)
            self.optimizers[i].state.clear()  # it is not needed any more
        return learner.eval().pass_on(signal, batch)

    def begin_epoch(self, step: int, images: Images) -> list[str]:
        """Where an epoch or the training of a Learner begins, objectives may look at all images; what they say."""
        phase, k = self.plan.at(step)
        if k and step % self.epoch_steps:
            return []
        self.share_weights()  # what is embedded goes through all blocks
        return begin_epoch(self.learners, phase.trained, (k, phase.steps), images, self.config, self.fabric.device)

    def given(self, step: int, samples: Samples) -> tuple[Signal, Batch]:
        """What the first Learner of this process is given."""
        if self.spread is None or self.spread.first:
            return self.signal_of(step, samples)
        phase, k = self.plan.at(step)
        return self.spread.receive(k, phase.steps), self.batch_of(step, samples)

    def batch_of(self, step: int, samples: Samples) -> Batch:
        return Batch(samples.labels, (self.config.train.seed, step), self.offset, samples.index)

    def signal_of(self, step: int, samples: Samples) -> tuple[Signal, Batch]:
        """The views of these samples, and what a Learner may know besides."""
        assert samples.pixels is not None, "this process makes the views"
        epoch, of_epoch = divmod(step, self.epoch_steps)
        seed, batch = self.config.train.seed, self.config.data.batch
        where = {"seed": seed, "epoch": epoch, "step": of_epoch, "batch": batch, "offset": self.offset}
        views = self.views(samples.pixels, aspect=samples.aspect, **where)
        if self.config.train.precision == "fp64":
            views = [view.double() for view in views]
        return Signal.from_views(views), self.batch_of(step, samples)

    def forget_frozen(self, i: int, step: int, k: int, total: int) -> None:
        """Take away a Learner's gradients of what is frozen for now: no optimizer moves what has none.

        `step` is of the run, `k` of the `total` in which this Learner is trained.
        """
        frozen = self.frozen if step < self.thaws_at else frozenset()
        if k < self.optims[i].freeze_prototypes.steps(self.epoch_steps, total):
            frozen = frozen | self.prototypes
        for p in self.learners[i].parameters() if frozen else ():
            if id(p) in frozen:
                p.grad = None

    def update(self, i: int, step: int, total: int, *rest: Any) -> None:
        """Clip, set the learning rate of this step, step; then the Learner moves its own state, given the `rest`."""
        learner, optimizer, spec = self.learners[i], self.optimizers[i], self.optims[i]
        if spec.clip is not None:
            torch.nn.utils.clip_grad_norm_(learner.parameters(), spec.clip)
        if spec.clip_each is not None:
            clip_each(learner.parameters(), spec.clip_each)
        set_lr(optimizer, self.rate(i, step, total))
        if spec.weight_decay_end is not None:
            decayed = cosine_decay(step, total) * (spec.weight_decay - spec.weight_decay_end)
            set_weight_decay(optimizer, spec.weight_decay_end + decayed)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        learner.after_step(step, total, *rest)

    def optimizer_of(self, learner: torch.nn.Module, spec: Optim) -> torch.optim.Optimizer:
        if not any(p.requires_grad for p in learner.parameters()):
            raise InputError(f"encoder.freeze={list(self.config.encoder.freeze)} leaves a learner nothing to train")
        bias = 1.0 if spec.lr_bias is None else spec.lr_bias / spec.lr
        scales = rate_scales(self.encoder, self.encoder.depths, learner, spec.layer_decay)
        apart = self.frozen | self.prototypes if spec.freeze_prototypes.amount else self.frozen
        groups = parameter_groups(learner, spec.weight_decay, spec.exclude_bias_and_norm, bias, scales, apart)
        return make_optimizer(groups, spec.kind, spec.lr, spec.momentum, spec.beta2)

    def rates(self, step: int) -> list[float]:
        """The learning rate at a step of every Learner whose turn it is, in the order of the losses."""
        phase, k = self.plan.at(step)
        return [self.rate(i, k, phase.steps) for i in phase.trained]

    def rate(self, i: int, step: int, total: int) -> float:
        """The learning rate of a Learner at step `step` of the `total` in which it is trained."""
        spec, warmup = self.optims[i], self.warmup(i, total)
        peak = spec.lr * self.config.data.batch / 256
        if spec.milestones:
            milestones = sorted(time.steps(self.epoch_steps, total) for time in spec.milestones)
            return stepwise(step, warmup, peak, milestones, spec.factor)
        return warmup_cosine(step, total, warmup, peak, end=spec.end * peak)

    def warmup(self, i: int, total: int) -> int:
        """Steps in which a Learner's learning rate rises, of the `total` in which it is trained."""
        return min(self.optims[i].warmup.steps(self.epoch_steps, total), total)

    def only_warms_up(self) -> bool:
        """Whether the learning rate rises to the end, so that no time is left to learn in."""
        return all(self.warmup(i, phase.steps) == phase.steps for phase in self.plan.phases for i in phase.trained)
