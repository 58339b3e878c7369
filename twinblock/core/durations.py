"""One type for every length of time in a run: exactly one of steps, epochs, percent; or time on the clock."""

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from twinblock.core.errors import InputError

SECONDS = {"min": 60, "h": 3600}


@dataclass(frozen=True)
class Duration:
    """A length such as `80steps`, `10epochs` or `25%` of the run; also a field type for pydantic models.

    Steps are whole; the others may be fractions. `str()` gives the text back in its shortest form. A whole run may also
    last `30min` or `2h`, see `of_run`: it becomes steps before it begins.
    """

    amount: Decimal
    unit: Literal["steps", "epochs", "%", "min", "h"]

    @classmethod
    def parse(cls, value: object, forms: str = "80steps, 10epochs or 25%") -> "Duration":
        """The duration that a text names; InputError that shows the `forms` for anything else."""
        if isinstance(value, Duration):
            return value
        match = re.fullmatch(r"(\d{1,12}(?:\.\d{1,12})?) ?(steps?|epochs?|%)", str(value).strip(), re.ASCII)
        if not match:
            raise InputError(f"not a duration: {value!r}; write it as {forms}")
        amount, unit = Decimal(match[1]), match[2]
        if unit != "%":
            unit = "steps" if unit.startswith("step") else "epochs"
        if unit == "steps" and amount % 1:
            raise InputError(f"not a duration: {value!r}; steps are whole numbers, such as 80steps")
        if unit == "%" and amount > 100:
            raise InputError(f"not a duration: {value!r}; a share of the run is at most 100%")
        return cls(amount, unit)

    @classmethod
    def of_run(cls, value: object) -> "Duration":
        """The length of a run that a text names: no share of it, but also minutes or hours."""
        match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?) ?(min|minutes?|h|hours?)", str(value).strip(), re.ASCII)
        if match and Decimal(match[1]):
            return cls(Decimal(match[1]), "min" if match[2].startswith("min") else "h")
        return cls.parse(value, "80steps, 10epochs, 30min or 2h")

    @property
    def on_the_clock(self) -> bool:
        return self.unit in SECONDS

    @property
    def seconds(self) -> float:
        """Of a time on the clock."""
        return float(self.amount * SECONDS[self.unit])

    def steps(self, steps_per_epoch: int, total: int | None = None) -> int:
        """The number of steps, rounded, at least 1 unless the duration is 0; percent needs `total` steps."""
        if self.unit == "%" and total is None:
            raise InputError(f"{self} is a share of the run, whose length it cannot set; write 80steps or 10epochs")
        assert not self.on_the_clock, "how many steps fit into a time is measured before"
        whole = {"steps": 1, "epochs": steps_per_epoch, "%": Decimal(total or 0) / 100}[self.unit]
        return max(1, round(self.amount * whole)) if self.amount else 0

    def __str__(self) -> str:
        return f"{self.amount.normalize():f}{self.unit}"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_plain_validator_function(
            cls.parse, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )


NO_TIME = Duration.parse("0epochs")
