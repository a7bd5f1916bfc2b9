"""``python -m benchmarks.agreement``: SDPO's loss here and in TRL, on the same tensors in float64: values and gradients.

TRL (``make trl``) is asked through its own ``SDPOTrainer._compute_self_distillation_loss``. It averages each rollout's tokens
and then all rollouts, one without a teacher as 0; here that is ``train.aggregation=sequence`` over the rollouts with a teacher,
times their share. So both directions are compared: TRL's loss from our parts, and our loss (``train.aggregation=token``) from
TRL's values at single tokens. Exit code 1 beyond ``MOST``.
"""

from __future__ import annotations

import itertools
import sys
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from rlrt.methods.aggregate import token_weights
from rlrt.methods.sdpo import Distillation
from rlrt.methods.signals import Distributions

MOST = 1e-12
"""Largest difference, relative to the largest value where that is above 1."""
ROLLOUTS, TOKENS, VOCABULARY = 6, 9, 40
ALPHAS, TOP_KS, CAPS = (0.0, 0.25, 0.5, 1.0), (0, 7), (1.1, 2.0)


def case(seed: int) -> SimpleNamespace:
    """Random logits of student and teacher, responses of several lengths, and two rollouts without a teacher."""
    generator = torch.Generator().manual_seed(seed)
    length_B = torch.tensor([9, 4, 1, 7, 9, 3])
    mask_BT = torch.arange(TOKENS)[None] < length_B[:, None]
    shape = (ROLLOUTS, TOKENS, VOCABULARY)
    student, teacher = (2 * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    token_BT = torch.randint(0, VOCABULARY, mask_BT.shape, generator=generator)
    logp_BT = student.log_softmax(-1).gather(-1, token_BT[..., None])[..., 0]
    old_BT = logp_BT + 0.6 * torch.randn(mask_BT.shape, generator=generator, dtype=torch.float64)
    taught_B = torch.tensor([True, True, False, True, False, True])
    return SimpleNamespace(
        mask_BT=mask_BT, taught_B=taught_B, student=student, teacher=teacher, token_BT=token_BT, old_BT=old_BT
    )


def ours_at_tokens(made: SimpleNamespace, logits: Tensor, alpha: float, top_k: int, cap: float) -> Tensor:
    """Our dense loss at every token, (B, T); 0 outside the responses and without a teacher."""
    where_BT = made.mask_BT & made.taught_B[:, None]
    logp_NV = logits.log_softmax(-1)[where_BT]
    logp_N = logp_NV.detach().gather(-1, made.token_BT[where_BT][:, None])[:, 0]
    seen = Distributions(logp_NV, made.teacher.log_softmax(-1)[where_BT], (logp_N - made.old_BT[where_BT]).exp())
    loss_BT = torch.zeros(where_BT.shape, dtype=torch.float64)
    loss_BT[where_BT] = Distillation(alpha, top_k, cap)(seen)
    return loss_BT


def theirs(made: SimpleNamespace, logits: Tensor, mask_BT: Tensor, alpha: float, top_k: int, cap: float) -> Tensor:
    """TRL's loss over the tokens of a mask, by its trainer's own method."""
    from trl.experimental.sdpo.sdpo_trainer import DistillationLogits, SDPOTrainer

    arguments = SimpleNamespace(
        distillation_mode="topk_logits" if top_k else "full_logits",
        distillation_topk=top_k,
        distillation_alpha=alpha,
        distillation_add_tail=True,
        distillation_is_clip=cap,
    )
    trainer: Any = SimpleNamespace(
        args=arguments,
        accelerator=SimpleNamespace(gather=lambda value: value),
        _log_self_distillation_metric=lambda mode, value: None,
    )
    seen = DistillationLogits(made.token_BT, made.mask_BT, mask_BT.double(), logits, made.teacher)
    old: Any = {"old_per_token_logps": made.old_BT}
    loss: Tensor = SDPOTrainer._compute_self_distillation_loss(trainer, SimpleNamespace(training=True), old, seen)
    return loss


def theirs_at_tokens(made: SimpleNamespace, logits: Tensor, *setting: Any) -> Tensor:
    """TRL's loss at every token, (B, T): that of a mask of one token, times the number of rollouts."""
    loss_BT = []
    for place in (made.mask_BT & made.taught_B[:, None]).nonzero().tolist():
        one_BT = torch.zeros_like(made.mask_BT)
        one_BT[tuple(place)] = True
        loss_BT.append(ROLLOUTS * theirs(made, logits, one_BT, *setting))
    return torch.stack(loss_BT)


def gap(first: Tensor, second: Tensor, logits: Tensor) -> float:
    """Largest difference of two losses and of their gradients at the student's logits."""
    gradients = [torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (first, second)]
    pairs = [(first.detach(), second.detach()), tuple(gradients)]
    return max(float((a - b).abs().max() / max(1.0, float(a.abs().max()))) for a, b in pairs)


def differences(seed: int, *setting: Any) -> tuple[float, float]:
    """TRL's loss by our parts, and our loss by TRL's values at single tokens: the largest difference of each."""
    made = case(seed)
    logits = made.student.requires_grad_()
    where_BT = made.mask_BT & made.taught_B[:, None]
    ours_BT = ours_at_tokens(made, logits, *setting)
    taught = token_weights(where_BT[made.taught_B], "sequence", TOKENS)
    share = float(made.taught_B.double().mean())
    as_theirs = share * (taught * ours_BT[made.taught_B]).sum()
    ours = (token_weights(where_BT, "token", TOKENS) * ours_BT).sum()
    as_ours = theirs_at_tokens(made, logits, *setting).mean()
    return gap(theirs(made, logits, where_BT, *setting), as_theirs, logits), gap(ours, as_ours, logits)


def main() -> None:
    """Compare every setting; print the largest differences."""
    found = [differences(seed, *s) for seed, s in enumerate(itertools.product(ALPHAS, TOP_KS, CAPS))]
    largest = [max(values) for values in zip(*found, strict=True)]
    print(
        f"SDPO, {len(found)} settings: TRL's loss from our parts within {largest[0]:.1e}, ours from TRL's values within "
        f"{largest[1]:.1e}"
    )
    sys.exit(max(largest) > MOST)


if __name__ == "__main__":
    main()
