"""Which Learners are trained when."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from twinblock.config import scopes as c
from twinblock.core.durations import Duration
from twinblock.core.errors import InputError


@dataclass(frozen=True)
class Phase:
    """`steps` steps in which the Learners `trained` learn; those before them only pass the signal on."""

    trained: tuple[int, ...]
    steps: int


@dataclass(frozen=True)
class Plan:
    phases: tuple[Phase, ...]

    @property
    def total(self) -> int:
        return sum(phase.steps for phase in self.phases)

    def at(self, step: int) -> tuple[Phase, int]:
        """The phase of a step, and the step's number in that phase."""
        for phase in self.phases:
            if step < phase.steps:
                return phase, step
            step -= phase.steps
        raise IndexError(step)


def make_plan(scope: c.EndToEnd | c.InBlocks, learners: int, steps: int, epoch_steps: int = 1) -> Plan:
    """All Learners at once, or one after the other by their budgets, or with an equal share of the steps each."""
    if not isinstance(scope, c.Blockwise) or scope.plan == "simultaneous":
        return Plan((Phase(tuple(range(learners)), steps),))
    if steps < learners:
        raise InputError(f"train.length gives {steps} steps for {learners} blocks in sequence; train at least one each")
    if scope.budgets is None:
        ends = [steps * (k + 1) // learners for k in range(learners)]
    else:
        ends = _ends(scope.budgets, learners, steps, epoch_steps)
    return Plan(tuple(Phase((k,), end - start) for k, (start, end) in enumerate(pairwise([0, *ends]))))


def _ends(budgets: Sequence[Duration], learners: int, steps: int, epoch_steps: int) -> list[int]:
    """The steps at which the phases end."""
    if len(budgets) != learners:
        raise InputError(f"scope.budgets has {len(budgets)} entries for {learners} blocks; give one for each")
    if budgets[0].unit == "%":  # the sums are rounded, not the shares: these must fill the run
        ends = [round(total * steps / 100) for total in accumulate(budget.amount for budget in budgets)]
    else:
        ends = list(accumulate(budget.steps(epoch_steps) for budget in budgets))
    if ends[-1] != steps:
        raise InputError(f"scope.budgets are {ends[-1]} steps in all, but train.length is {steps}; make them equal")
    empty = [k for k, (start, end) in enumerate(pairwise([0, *ends])) if start == end]
    if empty:
        raise InputError(f"scope.budgets: {budgets[empty[0]]} of {steps} steps is no step for block {empty[0] + 1}")
    return ends
