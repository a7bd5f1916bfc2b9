"""Effects of training on a policy, token by token (the RLRT paper's analyses, arXiv 2605.10781).

**Distribution shift.** Along the rollouts of a trained policy, how far its next-token distribution has moved from the base's.
**Causal intervention.** Continue a rollout anew from its most asymmetric, a random, or its least asymmetric position, and see
whether a wrong answer becomes right or a right one wrong. Asymmetry at t is KL(P_student || P_teacher) over the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlrt.methods.contexts import Sibling
from rlrt.model.forward import Row, evaluating, log_probabilities, micro_batches, over_tokens, response_hidden
from rlrt.reporting.terminal import Bar
from rlrt.sampling.draw import groups_of
from rlrt.sampling.sampler import Sampler
from rlrt.seeds import derive
from rlrt.types import Prompt, Rollout

MOVED = 0.1
"""Jensen-Shannon divergence, nats, above which a position counts as moved (the paper's)."""
DEEPEST = 20
"""Largest k of the top-k overlap (the paper's)."""
RARE = (1e-4, 1e-3, 1e-2, 1e-1)
"""Base probabilities under which a token that is now the most likely one counts as promoted (the paper's)."""
PLACES = ("argmax", "random", "argmin")
"""The positions from which a rollout is continued anew."""


@dataclass(frozen=True)
class Shift:
    """Distance of a policy from its base along the policy's own rollouts.

    Attributes:
        js_N: Jensen-Shannon divergence at every position, nats.
        overlap_MK: at the M moved positions, share of the base's top k among the policy's, for k = 1 ... K.
        promoted_M: base probability of the token that is now the most likely one, at the moved positions.
    """

    js_N: Tensor
    overlap_MK: Tensor
    promoted_M: Tensor


def jensen_shannon(p_logp_NV: Tensor, q_logp_NV: Tensor) -> Tensor:
    """JS divergence of each row, nats: (KL(p || m) + KL(q || m)) / 2 with m their mean; between 0 and log 2."""
    middle_NV = torch.logaddexp(p_logp_NV, q_logp_NV) - torch.log(torch.tensor(2.0))
    both = [(x.exp() * (x - middle_NV)).sum(-1) for x in (p_logp_NV, q_logp_NV)]
    return ((both[0] + both[1]) / 2).clamp(min=0.0)


def top_overlap(p_logp_NV: Tensor, q_logp_NV: Tensor, deepest: int) -> Tensor:
    """|top-k(p) and top-k(q)| / k of each row, for k = 1 ... deepest."""
    mine, theirs = (x.topk(deepest, dim=-1).indices for x in (p_logp_NV, q_logp_NV))
    same_NKK = mine[:, :, None] == theirs[:, None, :]
    return torch.stack([same_NKK[:, :k, :k].any(-1).sum(-1) / k for k in range(1, deepest + 1)], dim=-1)


@torch.no_grad()
def shift(model: Any, base: Any, rows: Sequence[Row], temperature: float, token_budget: int) -> Shift:
    """The distribution shift along rollouts of ``model``."""
    js: list[Tensor] = []
    overlaps: list[Tensor] = []
    promoted: list[Tensor] = []
    with evaluating(model), evaluating(base):
        for batch in micro_batches(model, rows, token_budget):
            batch_rows = [rows[i] for i in batch]
            then_NH = response_hidden(base, batch_rows)

            def compare(now_CV: Tensor, where: slice, then_NH: Tensor = then_NH) -> tuple[Tensor, ...]:
                then_CV = log_probabilities(base, then_NH[where], temperature)
                js_C = jensen_shannon(now_CV, then_CV)
                moved = js_C > MOVED
                overlap = top_overlap(now_CV[moved], then_CV[moved], min(DEEPEST, now_CV.shape[-1]))
                best_M1 = now_CV[moved].argmax(-1, keepdim=True)
                return js_C, overlap, then_CV[moved].gather(-1, best_M1)[:, 0].exp()

            results = over_tokens(model, response_hidden(model, batch_rows), temperature, compare)
            for values, parts in zip(results, (js, overlaps, promoted), strict=True):
                parts.append(values.cpu())
    return Shift(torch.cat(js), torch.cat(overlaps), torch.cat(promoted))


@torch.no_grad()
def asymmetry(
    model: Any, student: Sequence[Row], teacher: Sequence[Row], temperature: float, token_budget: int
) -> list[Tensor]:
    """KL(P_student || P_teacher) over the vocabulary at every response token, nats; one tensor for each row."""
    results: list[Tensor] = [torch.zeros(0)] * len(student)
    with evaluating(model):
        for batch in micro_batches(model, teacher, token_budget):
            theirs_NH = response_hidden(model, [teacher[i] for i in batch])

            def divergence(mine_CV: Tensor, where: slice, theirs_NH: Tensor = theirs_NH) -> tuple[Tensor, ...]:
                theirs_CV = log_probabilities(model, theirs_NH[where], temperature)
                return ((mine_CV.exp() * (mine_CV - theirs_CV)).sum(-1),)

            mine_NH = response_hidden(model, [student[i] for i in batch])
            kl_N = over_tokens(model, mine_NH, temperature, divergence)[0].cpu()
            start = 0
            for i in batch:
                end = start + len(student[i].response_ids)
                results[i], start = kl_N[start:end], end
    return results


def places(asymmetry_T: Tensor, seed: int) -> dict[str, int]:
    """The positions at which a rollout is continued anew, by the names of ``PLACES``."""
    return {
        "argmax": int(asymmetry_T.argmax()),
        "random": seed % len(asymmetry_T),
        "argmin": int(asymmetry_T.argmin()),
    }


def by_difficulty(rollouts: Sequence[Rollout], samples: int) -> tuple[list[Prompt], list[Prompt]]:
    """Prompts that were solved in at most a quarter of the samples (0-2 of 8), and in 5/8 to 7/8 of them (the paper's)."""
    hard, easy = [], []
    for group in groups_of(rollouts, samples):
        share = sum(r.grade.correct for r in group) / len(group)
        if share <= 2 / 8:
            hard.append(group[0].prompt)
        elif 5 / 8 <= share <= 7 / 8:
            easy.append(group[0].prompt)
    return hard, easy


def intervene(
    sampler: Sampler, prompts: Sequence[Prompt], samples: int, wrong: bool, insertion: Sequence[int],
    token_budget: int,
) -> dict[str, tuple[int, int]]:  # fmt: skip
    """Continue rollouts anew from three places each.

    Args:
        sampler: of the policy.
        prompts: hard ones for wrong rollouts, easy ones for right ones.
        samples: rollouts of each prompt.
        wrong: take the wrong rollouts and count those that become right; else the right ones that become wrong.
        insertion: token ids put in at the place; none: the policy draws anew from there.
        token_budget: of one forward pass.

    Returns:
        for each of ``PLACES`` (rollouts whose verdict turned, rollouts tried). A rollout without a correct sibling or a
        reference solution to show the teacher is left out.
    """
    rollouts, builder = sampler(prompts, samples, ("intervention",)), sampler.builder
    texts = [a or r.prompt.solution for a, r in zip(Sibling().texts(rollouts), rollouts, strict=True)]
    tried = [
        (r, text) for r, text in zip(rollouts, texts, strict=True)
        if text and r.grade.correct != wrong and not r.generation.truncated and not r.grade.error
    ]  # fmt: skip
    if not tried:
        return dict.fromkeys(PLACES, (0, 0))
    student = [Row(r.prompt_ids, r.generation.token_ids) for r, _ in tried]
    teacher = [Row(builder.teacher(r.prompt, text), r.generation.token_ids) for r, text in tried]
    model, temperature = sampler.policy.model, sampler.policy.temperature
    gaps = asymmetry(model, student, teacher, temperature, token_budget)
    results = {}
    for position in PLACES:
        starts, seeds = [], []
        for (rollout, _), gap_T in zip(tried, gaps, strict=True):
            at = places(gap_T, derive(rollout.seed, "place"))[position]
            starts.append([*rollout.generation.token_ids[:at], *insertion])
            seeds.append([derive(rollout.seed, "continued", position)])
        given = [[*row.prompt_ids, *start] for row, start in zip(student, starts, strict=True)]
        endings: dict[int, list[int]] = {}
        cut = set()
        with Bar(f"continued at {position}", len(given), "rollouts") as bar:
            for i, _, generation in sampler.engine.sample(given, seeds):
                endings[i] = generation.token_ids
                if generation.truncated:
                    cut.add(i)
                bar.one()
        turned = 0
        for i, (rollout, _) in enumerate(tried):
            text = sampler.policy.text([*starts[i], *endings[i]])
            judged = i not in cut or sampler.engine.grade_truncated
            right = judged and sampler.task.grade(rollout.prompt, builder.opening + text).correct
            turned += right == wrong
        results[position] = (turned, len(tried))
    return results
