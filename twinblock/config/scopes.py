"""Scopes: which blocks learn from which loss, and when."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from twinblock.core.durations import Duration
from twinblock.core.types import NotNegative, Width
from twinblock.methods.parts import Part, flat

Credit = Literal["backprop", "feedback_alignment", "direct", "sign_direct", "drtp", "none"]
Fields = Annotated[dict[str, Any], AfterValidator(flat)]


class OfBlock(Part):
    """Fields of a block's own objective, projector, predictor and optim, in place of those of the run."""

    objective: Fields = Field(default={})
    projector: Fields = Field(default={})
    predictor: Fields = Field(default={})
    optim: Fields = Field(default={})


class EndToEnd(Part):
    """All blocks learn from one loss."""

    kind: Literal["end_to_end"] = "end_to_end"
    cuts: Literal["stages", "blocks"] | tuple[str, ...] = "stages"
    """Blocks that the evaluation measures, and that a `credit` other than backprop teaches."""
    credit: Credit = "backprop"
    """How blocks get to know the error: `backprop`; `feedback_alignment`, through fixed random weights; `direct`, the
    error at the embedding times a fixed random matrix; `sign_direct`, its sign; `drtp`, the label in its place; `none`,
    not at all, so that the heads alone learn."""
    per_block: ClassVar[dict[int, OfBlock]] = {}


class InBlocks(Part):
    """Blocks with losses of their own."""

    cuts: Literal["stages", "blocks"] | tuple[str, ...] = "stages"
    """A block for each stage, for each residual block (or convolution, where there are none), or the names of the
    modules that begin a block."""
    pool: Literal["gap", "local", "l2"] = "gap"
    """What heads see of a block: the mean of its map, means of windows, or the root of their sums of squares."""
    grid: Annotated[int, Field(ge=1, le=64)] = 1
    """Windows a side, for `local` and `l2`."""
    expand: Width | None = None
    """Width of a 1 x 1 convolution before pooling; null: none."""
    noise: NotNegative = 0.0
    """Standard deviation of the noise on a block's output, in units of the map's own."""
    noise_over: Literal["all", "hw", "c"] = "all"
    """What that deviation is taken over: the whole tensor, each map, or each place."""
    per_block: dict[Annotated[int, Field(ge=1)], OfBlock] = Field(default={})
    """Settings of single blocks, by number from 1 on."""

    @model_validator(mode="before")
    @classmethod
    def _errors_of_their_own(cls, fields: Any) -> Any:
        if isinstance(fields, dict) and "credit" in fields:
            raise ValueError("credit is for scope.kind=end_to_end: here each block has a loss of its own; leave it out")
        return fields

    @model_validator(mode="after")
    def _windows(self):
        if self.pool == "gap" and self.grid != 1:
            raise ValueError("grid is for pool=local or pool=l2; global pooling has one window")
        return self


class Blockwise(InBlocks):
    """No gradient crosses from block to block."""

    kind: Literal["blockwise"]
    plan: Literal["simultaneous", "sequential"] = "simultaneous"
    """All blocks at once, or one after the other."""
    budgets: tuple[Duration, ...] | None = None
    """How long each block of a sequential plan trains, in % or in steps; null: equally long."""

    @model_validator(mode="after")
    def _whole(self):
        if self.budgets is None:
            return self
        if self.plan != "sequential":
            raise ValueError("budgets are for plan=sequential; simultaneous blocks train all the time")
        shares = [budget for budget in self.budgets if budget.unit == "%"]
        if shares and len(shares) < len(self.budgets):
            raise ValueError("budgets: give all of them in %, or none")
        if shares and sum(share.amount for share in shares) != 100:
            raise ValueError(f"budgets add up to {sum(share.amount for share in shares)}%; make it 100%")
        return self


class Overlapping(InBlocks):
    """Each pair of neighbouring blocks learns from one loss."""

    kind: Literal["overlapping"]

    @model_validator(mode="after")
    def _one_optimizer(self):
        for number, settings in self.per_block.items():
            if settings.optim:
                raise ValueError(f"per_block.{number}.optim: blocks that overlap share one optimizer; set optim itself")
        return self
