"""Further models beside the student: a teacher whose weights are not the student's, and the reference of a KL penalty.

Without adapters such a model has weights of its own. With adapters its base weights are the student's very tensors, which
nothing changes: only the adapters differ. The step-0 model then has none at all, since a new adapter's product is zero.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from rlrt.distributed import sharding
from rlrt.model.lora import adapters, base_name, without_adapters
from rlrt.model.precision import dtype_of


def twin(model: Any, moves: bool) -> Any:
    """Return a model with the student's weights of now that takes no gradient, before the student is sharded, if it will be.

    Args:
        moves: whether it will be given later weights of the student; with adapters it then has adapters of its own.
    """
    adapted = adapters(model)
    shared = {id(p): p for name, p in model.named_parameters() if adapted and name not in adapted}
    return settled(copy.deepcopy(model, shared), bool(adapted) and not moves)


def outlined(model: Any, moves: bool) -> Any:
    """Return ``twin`` with its weights on the meta device, for ``share_twin``."""
    empty = {id(p): nn.Parameter(p.to("meta"), requires_grad=False) for p in model.parameters()}
    return settled(copy.deepcopy(model, empty), bool(adapters(model)) and not moves)


def settled(model: Any, strip: bool) -> Any:
    """Return a copy in evaluation mode, without gradients, and without adapters if ``strip``."""
    model = without_adapters(model) if strip else model
    model.requires_grad_(False)
    return model.eval()


@torch.no_grad()
def share_twin(model: Any, student: Any, device: torch.device) -> None:
    """Shard an outlined twin over the ranks and give it the shards of the student, which is sharded and filled.

    With adapters the base weights' shards are the student's very tensors.
    """
    adapted = adapters(student)
    sharding.share_fsdp(model, device, dtype_of(student))
    students = {base_name(name): (name, weight) for name, weight in student.named_parameters()}

    def value(name: str, empty: Any) -> Any:
        students_name, weight = students[base_name(name)]
        shares = adapted and students_name not in adapted
        return weight.detach() if shares else empty.copy_(weight)

    sharding.fill(model, device, value)
    model.config._attn_implementation = student.config._attn_implementation
