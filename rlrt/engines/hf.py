"""Rollouts in the trainer's own process, from its own weights: the engine for a CPU, and the reference for other engines."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from rlrt.distributed.sharding import is_sharded
from rlrt.engines.cached import CachedDecoder
from rlrt.engines.engine import Engine
from rlrt.errors import UserError
from rlrt.keys import key
from rlrt.model.dense import DenseDecoder
from rlrt.model.lora import named_weights
from rlrt.model.paths import decodes_quickly, paths_of
from rlrt.model.precision import computing, set_compute_dtype
from rlrt.seeds import uniforms
from rlrt.types import Generation, Sampling

STOP_EVERY = 64
"""Tokens between two looks at whether the run was asked to end."""


class Decoder(Protocol):
    """Rows that grow by one token at a time."""

    def start(self, prompts: Sequence[Sequence[int]], counts: Sequence[int]) -> Tensor:
        """Run each prompt once; return logits of the first token of ``counts[i]`` rows of prompt i: (rows, V)."""

    def step(self, token_B: Tensor) -> Tensor:
        """Append a token to each row and return the logits of the next token: (rows, V)."""

    def keep(self, index: Tensor) -> None:
        """Keep only the rows in ``index``."""


@dataclass
class HfEngine(Engine):
    """Sampler from softmax(logits / temperature) over the whole vocabulary; no token is ever masked.

    A group's prompt is run once and its cache shared; a rollout's tokens depend on its own seed and the weights alone;
    finished rows are dropped. ``engine.*``:
    """

    exact: ClassVar[bool] = True
    takes_shards: ClassVar[bool] = True
    max_new_tokens: int = key(
        "maximum length of a response; one without a stop token by then is truncated", "tokens", least=1, most=1_000_000
    )
    temperature: float = key("sampling temperature of rollouts")
    max_rows: int = key("rollouts decoded at once", least=1)
    grade_truncated: bool = key(
        "whether a response that met max_new_tokens is graded like any other; false: it is wrong, and no verifier is asked"
    )
    _model: Any = field(default=None, init=False, repr=False)
    _stop: Tensor = field(default_factory=lambda: torch.zeros(0), init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse a temperature that makes all rollouts of a group equal."""
        if not self.temperature > 0:
            raise UserError(
                f"engine.temperature: expected a number above 0, got {self.temperature:g}: at 0 all rollouts of a group "
                "are the same and carry no advantage; set it to 1.0 (greedy evaluation is always measured besides)."
            )

    def load(self, model: Any, stop_ids: Sequence[int], version: int = 0) -> None:
        """Set the weights to sample from: the trainer's own, or an unsharded copy if the weights are sharded over ranks."""
        before = self._model if hasattr(self._model, "is_replica") else None
        if is_sharded(model):
            begin = time.perf_counter()
            self._model = replica(model, before)
            self.synced_bytes += sum(weight.nbytes for weight in self._model.parameters())
            self.synced_s += time.perf_counter() - begin
        else:
            self._model = model
        self._stop = torch.tensor(list(stop_ids))

    def release(self) -> None:
        """Drop an unsharded copy of the weights until the next load."""
        if hasattr(self._model, "is_replica"):
            self._model = None

    def close(self) -> None:
        """Do nothing: this engine holds no process."""

    @torch.inference_mode()
    def sample(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]], sampling: Sampling | None = None
    ) -> Iterator[tuple[int, int, Generation]]:
        """Yield responses to each prompt, one for each of its seeds, as soon as each ends.

        Args:
            prompts: token ids of P prompts.
            seeds: for each prompt the seeds of its rollouts; greedy sampling ignores them.
            sampling: replaces the engine's temperature, for evaluation; no loss uses its probabilities.

        Yields:
            the prompt's index, the index of one of its seeds, and the generation, in the order in which they end.
        """
        sampling = Sampling(self.temperature) if sampling is None else sampling
        was_training = self._model.training
        self._model.eval()
        try:
            start = 0
            while start < len(prompts) and not self.asked_to_end():
                end, rows = start, 0
                while end < len(prompts) and (rows + len(seeds[end]) <= self.max_rows or end == start):
                    rows += len(seeds[end])
                    end += 1
                with computing(self._model):
                    owner = [(i, g) for i in range(start, end) for g in range(len(seeds[i]))]
                    for row, generation in self._decode(prompts[start:end], seeds[start:end], sampling):
                        yield *owner[row], generation
                start = end
        finally:
            self._model.train(was_training)

    def _decode(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]], sampling: Sampling
    ) -> Iterator[tuple[int, Generation]]:
        device = next(self._model.parameters()).device
        rows, limit = sum(len(s) for s in seeds), self.max_new_tokens
        uniform_BT = uniforms([s for group in seeds for s in group], limit).to(device)
        token_BT = torch.zeros(rows, limit, dtype=torch.long, device=device)
        logp_BT = torch.zeros(rows, limit, device=device)
        entropy_BT = torch.zeros(rows, limit, device=device)
        stop = self._stop.to(device)
        decoder: Decoder = DenseDecoder(self._model) if decodes_quickly(self._model) else CachedDecoder(self._model)
        logits = decoder.start(prompts, [len(s) for s in seeds])
        row = torch.arange(rows, device=device)
        done = torch.zeros(rows, dtype=torch.bool, device=device)
        for t in range(limit):
            token, logp, entropy = choose(logits.float(), sampling, uniform_BT[:, t])
            token_BT[:, t], logp_BT[:, t], entropy_BT[:, t] = token, logp, entropy
            closed = torch.isin(token, stop)
            ending = (~done if t == limit - 1 else closed & ~done).nonzero()[:, 0]
            done |= closed
            if len(ending):
                with torch.inference_mode(False):  # autograd may read these tensors
                    parts = [x[ending, : t + 1].cpu().clone() for x in (token_BT, logp_BT, entropy_BT)]
                ends = closed[ending].tolist()
                for n, index in enumerate(row[ending].tolist()):
                    tokens, logp_T, entropy_T = (x[n] for x in parts)
                    yield index, Generation(tokens.tolist(), logp_T, entropy_T, truncated=not ends[n])
            alive = len(done) - int(done.sum())
            if alive == 0 or t == limit - 1:
                break
            if alive <= 0.85 * len(done):  # compaction copies the cache: it pays once 15 % of the rows have ended
                keep = (~done).nonzero()[:, 0]
                row, token, done, uniform_BT = row[keep], token[keep], done[keep], uniform_BT[keep]
                token_BT, logp_BT, entropy_BT = token_BT[keep], logp_BT[keep], entropy_BT[keep]
                decoder.keep(keep)
            if t % STOP_EVERY == 0 and self.asked_to_end():
                break
            logits = decoder.step(token)


@torch.no_grad()
def replica(model: Any, before: Any) -> Any:
    """Return an unsharded copy of an FSDP model; reuse the tensors of ``before`` unless it is None."""
    if before is None:
        with torch.device(next(model.parameters()).device):
            before = type(model)._from_config(model.config, dtype=torch.float32)
        before.requires_grad_(False)
        before.is_replica = True
        set_compute_dtype(before, getattr(model, "compute_dtype", torch.float32))
        before.paths = paths_of(model)
    weights = dict(before.named_parameters())
    for name, weight in named_weights(model):
        weights[name].copy_(weight)
    return before


def choose(logits_BV: Tensor, sampling: Sampling, uniform_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Draw the next token of each row by inverting the distribution function at ``uniform_B``; arg max at temperature 0.

    Returns:
        token_B, its log-probability, and the entropy (nats) of the distribution that it was drawn from; greedy decoding gives
        both at temperature 1.
    """
    logp_BV = (logits_BV / (sampling.temperature or 1.0)).log_softmax(-1)
    if sampling.temperature and (sampling.top_k or sampling.top_p < 1):
        logp_BV = truncated(logp_BV, sampling)
    p_BV = logp_BV.exp()
    if sampling.temperature == 0:
        token = logp_BV.argmax(-1)
    else:
        cumulative = p_BV.cumsum(-1, dtype=torch.float64)
        point = uniform_B[:, None] * cumulative[:, -1:]
        token = torch.searchsorted(cumulative, point, right=True)[:, 0].clamp(max=logp_BV.shape[-1] - 1)
    spread = p_BV * logp_BV.clamp(min=torch.finfo(logp_BV.dtype).min)
    return token, logp_BV.gather(-1, token[:, None])[:, 0], -spread.sum(-1)


def truncated(logp_BV: Tensor, sampling: Sampling) -> Tensor:
    """Return the renormalised distribution over the ``top_k`` likeliest tokens, and of those the fewest with mass ``top_p``."""
    if 0 < sampling.top_k < logp_BV.shape[-1]:
        least = logp_BV.topk(sampling.top_k).values[:, -1:]
        logp_BV = logp_BV.masked_fill(logp_BV < least, -torch.inf).log_softmax(-1)
    if sampling.top_p < 1:
        ordered, index = logp_BV.sort(descending=True, stable=True)
        before = ordered.exp().cumsum(-1) - ordered.exp()
        outside = (before >= sampling.top_p).gather(-1, index.argsort(-1))
        logp_BV = logp_BV.masked_fill(outside, -torch.inf).log_softmax(-1)
    return logp_BV
