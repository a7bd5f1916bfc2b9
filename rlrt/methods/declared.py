"""Declarations of a slot: metrics to watch, to draw and to tag. The trainer, MLflow and the report read these declarations
and know no method by name.

A run's manifest stores them as plain values, so that a report needs no class of the run's method.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Alarm:
    """Warn once when a metric leaves its range.

    Attributes:
        metric: its name.
        sentence: what that means, for a person.
        above, below: the alarm rings above the one and below the other; None: no bound on that side.
        not_finite: whether it rings where the metric is infinite or no number.
    """

    metric: str
    sentence: str
    above: float | None = None
    below: float | None = None
    not_finite: bool = False

    def rings(self, value: float) -> bool:
        """True if the value is out of range."""
        if not math.isfinite(value):
            return self.not_finite
        return (self.above is not None and value > self.above) or (self.below is not None and value < self.below)


@dataclass(frozen=True)
class Curve:
    """A metric that the report draws against the step.

    Attributes:
        metric: its name.
        name: stem of the figure's files; letters and digits only.
        axis: what the axis says, with the unit.
        low, high: how far the quantity can go; None: without end.
    """

    metric: str
    name: str
    axis: str
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if not self.name.isalnum():
            raise ValueError(f"a curve's name is made of letters and digits only, got {self.name!r}")


@dataclass(frozen=True)
class Ablation:
    """Two of a slot's keys whose values the report draws the final metric against.

    Attributes:
        x, by: keys of ``method``: on the axis, and one line for each value.
        x_label, by_label: what the figure calls them.
        where: values that other keys of ``method`` must have for a run to count.
    """

    x: str
    by: str
    x_label: str
    by_label: str
    where: Mapping[str, str] = field(default_factory=dict)
