"""What is done to the sweeps, and when: a function of the seed. Whom it meets depends on what runs at that moment."""

from __future__ import annotations

import random
from dataclasses import dataclass

WEIGHTS = {"job": 3, "rank": 4, "driver": 3, "node": 2, "cable": 1, "disk": 2, "mlflow": 1, "slurmctld": 1}
"""Kinds and how often each comes. The last five last for a while; one of a kind at a time."""
LASTS_S = {"node": (20, 90), "cable": (10, 60), "disk": (10, 40), "mlflow": (10, 60), "slurmctld": (5, 60)}
"""Shortest and longest seconds of what lasts. SLURM gives a silent node up after 30, a rank another's silence after 20."""


@dataclass(frozen=True)
class Disturbance:
    """One of the plan.

    Attributes:
        at: seconds from the start.
        kind: of ``WEIGHTS``.
        pick: in [0, 1): which of the candidates it meets.
        lasts: seconds until it is put right; 0 for a kill.
    """

    at: float
    kind: str
    pick: float
    lasts: float


def plan(minutes: float, seed: int, gap_s: float) -> list[Disturbance]:
    """The disturbances of a number of minutes, ``gap_s`` seconds apart on average."""
    rng, at, found = random.Random(seed), 0.0, []
    while True:
        at += rng.uniform(0.3, 1.7) * gap_s
        if at > minutes * 60:
            return found
        kind = rng.choices(list(WEIGHTS), weights=list(WEIGHTS.values()))[0]
        lasts = rng.uniform(*LASTS_S[kind]) if kind in LASTS_S else 0.0
        found.append(Disturbance(at, kind, rng.random(), lasts))
