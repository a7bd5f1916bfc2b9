"""What the trainer needs of a checkpoint besides the model's files: tensors by name, and JSON; and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rlrt.distributed.sharding import put
from rlrt.errors import UserError, first_line
from rlrt.model.load import load
from rlrt.model.lora import adapters
from rlrt.paths import STATE, TRAINER
from rlrt.records.files import read_text
from rlrt.records.shards import read_into, shapes
from rlrt.training.learner import Learner

LARGEST_STATE = 1_000_000_000
"""Bytes of ``state.json``, which may hold the rollouts of a step that were sampled ahead."""
ASIDE = "give another folder, or resume=never, which puts that run aside."
OPTIMISER, TEACHER, ADAPTERS, WEIGHTS = "optimiser.", "teacher.", "adapters.", "weights."
"""Beginnings of the names of tensors in the trainer's shards."""


def trainer_tensors(learner: Learner, weights: bool) -> dict[str, Any]:
    """Return the trainer's own tensors by name: those that are trained, not copies.

    Args:
        weights: the model's weights too, because the model's files do not hold them to the bit.
    """
    model, optimiser = learner.policy.model, learner.policy.optimiser
    tensors: dict[str, Any] = {}
    for name, parameter in model.named_parameters():
        for key, value in optimiser.state.get(parameter, {}).items():
            if not isinstance(value, torch.Tensor):
                raise TypeError(f"optimiser state {key} is a {type(value).__name__}, expected a tensor")
            tensors[f"{OPTIMISER}{name}.{key}"] = value
    tensors |= {TEACHER + name: t for name, t in (learner.teacher.state() or {}).items()}
    tensors |= {ADAPTERS + name: t for name, t in adapters(model).items()}
    if weights:
        tensors |= {WEIGHTS + name: p for name, p in model.named_parameters() if ADAPTERS + name not in tensors}
    return tensors


def trainer_values(learner: Learner, step: int) -> dict[str, Any]:
    """Return the JSON values of a checkpoint."""
    groups = learner.policy.optimiser.state_dict()["param_groups"]
    return {"step": step, "optimiser": {"param_groups": groups}, "method": learner.method.state_dict()}


def restore_checkpoint(learner: Learner, checkpoint: Path, attention: str) -> tuple[int, dict[str, Any] | None]:
    """Take over a checkpoint; returns its step, and rollouts that were sampled ahead.

    Each rank reads its own shards of what any number of ranks wrote.

    Args:
        attention: ``model.attn_implementation``.

    Raises:
        UserError: for a checkpoint without the teacher's weights, and for one that holds other things than rlrt writes: its
            checksums say that it is as it was written, not who wrote it.
    """
    inner, model = checkpoint / TRAINER, learner.policy.model
    values = position_of(inner / STATE)
    try:
        stored = shapes(inner)
        if learner.teacher.state() is not None and not any(n.startswith(TEACHER) for n in stored):
            raise UserError(
                f"resume: {checkpoint} holds no teacher weights, but teacher.weights={learner.teacher.weights}."
            )
        open_optimiser(learner, stored, values["optimiser"]["param_groups"])
        with_weights = any(n.startswith(WEIGHTS) for n in stored)
        read_into(inner, trainer_tensors(learner, with_weights))
        learner.method.load_state_dict(values["method"])
    except UserError:
        raise
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"resume: {inner} does not fit this run ({first_line(error)}); {ASIDE}") from error
    if not adapters(model) and not with_weights:
        restore_weights(model, checkpoint, attention)
    return values["step"], values.get("pending")


def position_of(file: Path) -> dict[str, Any]:
    """Read ``state.json`` of a checkpoint.

    Raises:
        UserError: for what is no such file; of its values only the kinds are looked at.
    """
    try:
        values = json.loads(read_text(file, LARGEST_STATE))
        step, groups = values["step"], values["optimiser"]["param_groups"]
        kinds = (
            isinstance(step, int) and isinstance(values["method"], dict) and all(isinstance(g, dict) for g in groups)
        )
        if not kinds or step < 0 or not isinstance(values.get("pending"), dict | None):
            raise ValueError("a value is of another kind")
    except (FileNotFoundError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise UserError(f"resume: {file} is not what rlrt writes ({first_line(error)}); {ASIDE}") from None
    return dict(values)


def open_optimiser(learner: Learner, stored: Mapping[str, tuple[int, ...]], groups: list[dict[str, Any]]) -> None:
    """Give the optimiser the state that a checkpoint holds, all of it zero as yet, with the checkpoint's parameter groups."""
    parameters = {n: p for n, p in learner.policy.model.named_parameters() if p.requires_grad}
    numbers = {name: i for i, name in enumerate(parameters)}
    state: dict[int, dict[str, torch.Tensor]] = {}
    for full, shape in stored.items():
        if full.startswith(OPTIMISER):
            name, key = full.removeprefix(OPTIMISER).rsplit(".", 1)
            parameter = parameters[name].detach()
            empty = torch.zeros_like(parameter) if shape == tuple(parameter.shape) else torch.zeros(shape)
            state.setdefault(numbers[name], {})[key] = empty
    tuples = [
        {k: tuple(v) if isinstance(v, list) and k != "params" else v for k, v in group.items()} for group in groups
    ]  # JSON has no tuples
    learner.policy.optimiser.load_state_dict({"state": state, "param_groups": tuples})


def restore_weights(model: Any, checkpoint: Path, attention: str) -> None:
    """Read the float32 weights of the model's files: by each rank its shards; whole, by transformers, where names differ."""
    weights = dict(model.named_parameters())
    if weights.keys() <= shapes(checkpoint).keys():
        read_into(checkpoint, weights)
    else:
        saved, _ = load(str(checkpoint), None, attention)
        put(weights, dict(saved.named_parameters()))
