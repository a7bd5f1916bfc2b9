"""A model sharded over several processes beside whole ones: weights, precision, what is gathered; torchrun starts it, the main
process writes FILE."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rlrt.distributed.sharding import is_share, run, whole
from rlrt.distributed.world import ALONE, connect
from rlrt.execution.build import build_learner
from rlrt.model import forward
from rlrt.model.load import load
from rlrt.model.lora import adapters
from rlrt.paths import EMBEDDED
from tests.distributed.gradients import gradients
from tests.helpers import settings

SMALL = ("method=sd", "teacher.weights=frozen", "train.kl_coef=0.1")
LORA = ("model.lora=4", "teacher.weights=ema", "train.kl_coef=0.1")


def untied(folder: Path) -> None:
    """The embedded model as an untied one in bfloat16, in several files, with one row more here and one less there: rows that
    do not divide by two."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.from_pretrained(EMBEDDED)
    config.update({"tie_word_embeddings": False, "intermediate_size": 191, "vocab_size": 113})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    start = AutoModelForCausalLM.from_pretrained(EMBEDDED)
    learnt = start.state_dict()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            both = [slice(0, min(a, b)) for a, b in zip(weight.shape, learnt[name].shape, strict=True)]
            weight[tuple(both)].copy_(learnt[name][tuple(both)])
    model.generation_config = start.generation_config
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="60KB")
    AutoTokenizer.from_pretrained(EMBEDDED).save_pretrained(folder)


class Casts(TorchDispatchMode):
    """Counts casts of matrices with the shape of a weight to bfloat16."""

    def __init__(self, model):
        super().__init__()
        self.shapes = {tuple(p.shape) for n, p in model.named_parameters() if "proj" in n}
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        is_cast = func is torch.ops.aten._to_copy.default and (kwargs or {}).get("dtype") == torch.bfloat16
        if is_cast and tuple(args[0].shape) in self.shapes:
            self.count += 1
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def traffic():
    """What FSDP2 sends: lists of (type of number, bytes) of gathered weights and of summed gradients."""
    import torch.distributed as dist

    sent = {"gathered": [], "summed": []}
    calls = {"all_gather_single": "gathered", "reduce_scatter_single": "summed"}
    before = {name: getattr(dist, name) for name in calls}

    def noting(name):
        def call(*args, **kwargs):
            given = kwargs["input"] if "input" in kwargs else args[1]
            sent[calls[name]].append((str(given.dtype), given.nbytes))
            return before[name](*args, **kwargs)

        return call

    for name in calls:
        setattr(dist, name, noting(name))
    try:
        yield sent
    finally:
        for name, call in before.items():
            setattr(dist, name, call)


def apart(one, other) -> float:
    """Distance of two lists of gradients, relative to the first's length."""
    pairs = [(e[k].flatten(), g[k].flatten()) for e, g in zip(one, other, strict=True) for k in e]
    left, right = (torch.cat(column).double() for column in zip(*pairs, strict=True))
    return float((left - right).norm() / left.norm())


def precision(world, path: str) -> dict:
    """Gradients in bfloat16, sharded and not, beside those in float32."""
    words = (f"model.path='{path}'", "method=rlrt")
    exact, _ = gradients(ALONE, words, "ddp")
    found = {}
    for strategy in ("ddp", "fsdp"):
        with traffic() as sent:
            half, numbers = gradients(world, (*words, "dtype=bfloat16"), strategy)
        found[strategy] = {"apart": apart(exact, half), "loss": numbers["policy/loss"]}
        found[strategy] |= {k: sorted({dtype for dtype, _ in v}) for k, v in sent.items()}
        found[strategy]["bytes"] = sum(size for _, size in sent["gathered"])
    with traffic() as sent:
        gradients(world, words, "fsdp")
    found["float32"] = {"bytes": sum(size for _, size in sent["gathered"])}
    return found


def copies_made(world, path: str) -> dict[str, int]:
    """Casts of weights in two passes of a model that learns, within one autocast each."""
    counts = {}
    for strategy in ("ddp", "fsdp"):
        made = settings(f"model.path='{path}'", "dtype=bfloat16", f"distributed.strategy={strategy}")
        model = build_learner(made, world).policy.model
        rows = [forward.Row([1, 20, 30], [40, 50, 2])]
        with Casts(model) as casts:
            forward.score(model, rows, 1.0, 100, 3)
            (logp,) = run(model, lambda m=model, r=rows: (forward.response_logp(m, r, 1.0).sum().view(1),))
            logp.sum().backward()
        counts[strategy] = casts.count
    return counts


def weights(world, path: str, *more: str) -> dict:
    """Are a sharded model's weights and buffers those of a whole one; what its teacher and reference hold."""
    words = (f"model.path='{path}'", *SMALL, *more)
    shared = build_learner(settings(*words, "distributed.strategy=fsdp"), world)
    alone = build_learner(settings(*words))
    model, other = shared.policy.model, alone.policy.model
    equal = {}
    for name, mine, theirs in (
        ("student", model, other),
        ("teacher", shared.teacher.model, alone.teacher.model),
        ("reference", shared.reference, alone.reference),
    ):
        expected = dict(theirs.named_parameters())
        assert [n for n, _ in mine.named_parameters()] == [n for n, _ in theirs.named_parameters()], name
        same = all(torch.equal(whole(p), expected[n]) for n, p in mine.named_parameters())
        buffers = dict(theirs.named_buffers())
        same &= all(torch.equal(b, buffers[n]) for n, b in mine.named_buffers()) and bool(buffers)
        equal[name] = same and mine.config._attn_implementation == theirs.config._attn_implementation
    base = {n: p for n, p in model.named_parameters() if n not in adapters(model)}
    storages = {p.to_local().untyped_storage().data_ptr() for p in base.values() if p.to_local().numel()}
    held = {
        name: sum(
            p.to_local().numel()
            for p in one.parameters()
            if p.to_local().numel() and p.to_local().untyped_storage().data_ptr() not in storages
        )
        for name, one in (("teacher", shared.teacher.model), ("reference", shared.reference))
    }
    return {
        "equal": equal,
        "own": held,
        "adapters": sum(p.to_local().numel() for p in adapters(model).values()),
        "shard": sum(p.to_local().numel() for p in model.parameters()),
        "stop": model.generation_config.eos_token_id == other.generation_config.eos_token_id,
        "config": model.config.to_dict() == other.config.to_dict(),
    }


def dropped(world, path: str, method: str) -> list[bool]:
    """After every scoring pass and after an update: does every model hold its shards alone?"""
    seen, learners = [], []
    score, build = forward.score_batch, build_learner

    def scoring(model, *given):
        result = score(model, *given)
        seen.append(all(is_share(p) for p in model.parameters()))
        return result

    def building(*given):
        learners.append(build(*given))
        return learners[-1]

    import tests.distributed.gradients as module

    forward.score_batch, module.build_learner = scoring, building
    try:
        gradients(
            world, (f"model.path='{path}'", f"method={method}", "teacher.weights=ema", "train.kl_coef=0.1"), "fsdp"
        )
    finally:
        forward.score_batch, module.build_learner = score, build
    models = (learners[0].policy.model, learners[0].teacher.model, learners[0].reference)
    return seen + [all(is_share(p) for p in m.parameters()) for m in models]


def main(file: str) -> None:
    torch.set_num_threads(1)
    world = connect(60.0, on_gpu=False)
    folder = Path(file).parent / "untied"
    world.on_main(lambda: untied(folder))
    renamed = Path(file).parent / "said_to_be_tied"  # an output layer of its own, and a config that says tied

    def rename() -> None:
        model, tokenizer = load(str(folder), None, "sdpa")
        model.save_pretrained(renamed)
        tokenizer.save_pretrained(renamed)
        config = json.loads((renamed / "config.json").read_text())
        (renamed / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))

    world.on_main(rename)
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("rlrt").addHandler(handler)
    logging.getLogger("rlrt").setLevel(logging.INFO)
    found = {
        "tied": precision(world, "embedded"),
        "untied": precision(world, str(folder)),
        "copies": copies_made(world, str(folder)),
        "weights": {
            "tied": weights(world, "embedded"),
            "untied": weights(world, str(folder)),
            "adapters": weights(world, str(folder), *LORA),
        },
        "dropped": dropped(world, str(folder), "rlrt") + dropped(world, str(folder), "sd"),
    }
    found["said before"] = [line for line in said if "whole model" in line]
    said.clear()
    found["weights"]["whole"] = weights(world, str(renamed))
    found["said"] = [line for line in said if "whole model" in line]
    if world.main:
        Path(file).write_text(json.dumps(found, indent=1))
    world.leave()


if __name__ == "__main__":
    main(sys.argv[1])
