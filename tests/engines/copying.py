"""An engine with weights of its own, as vLLM's are: what it samples with is what it was last given."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from rlrt.engines.hf import HfEngine
from rlrt.keys import key


@dataclass
class CopyingEngine(HfEngine):
    """``HfEngine`` on a copy of the weights; ``off`` is added to the log-probabilities that it reports."""

    importance_clip: float = key("largest importance weight", above=0)
    off: float = key("error of the log-probabilities", "nats")
    exact: ClassVar[bool] = False
    takes_shards: ClassVar[bool] = False
    calls: list[str] = field(default_factory=list, init=False)

    def load(self, model: Any, stop_ids: Sequence[int], version: int = 0) -> None:
        self.calls.append(f"load {version}")
        super().load(copy.deepcopy(model), stop_ids)

    def sample(self, *arguments: Any, **more: Any) -> Any:
        self.calls.append("sample")
        for i, g, generation in super().sample(*arguments, **more):
            generation.logp_T = generation.logp_T + self.off
            generation.entropy_T = -generation.logp_T
            yield i, g, generation

    def release(self) -> None:
        self.calls.append("release")
