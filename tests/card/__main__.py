"""Runs of rlrt on the pretended card: the first step, a checkpoint, another process's second step.

``python -m tests.card OUT.json "method=rlrt train.minibatches=2" ...``; ``plant=NAME`` in a case plants a fault. For each case
OUT.json gets the error, or the waits by line, the numbers of passes and tokens, and the attention kernels. Without arguments
each line of the input is the JSON list [OUT.json, CASE], which a fork runs; then its exit code is a line of the output.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
import traceback
from pathlib import Path

from tests.card.card import COUNTS, KERNELS, card, torch  # first: it loads the guard

SMALL = (
    "device=cuda", "dtype=bfloat16", "tracking=none", "train.prompts_per_step=4", "train.rollouts_per_prompt=4",
    "eval.prompts=4", "eval.samples_per_prompt=2", "train.save_every=1", "train.keep_last=1",
    "model.gradient_checkpointing=true", "engine.max_new_tokens=16", "teacher.probe_prompts=0",
)  # fmt: skip


def run(overrides, folder, stop) -> None:
    """A run of two steps on the card; ``stop``: it is asked to save and end after each step."""
    from omegaconf import OmegaConf

    from rlrt.config.compose import composer
    from rlrt.config.load import load
    from rlrt.execution.execute import execute

    typed = [*SMALL, *overrides, "train.steps=2"]
    with composer() as compose:
        whole = compose(typed)
        settings = load(OmegaConf.masked_copy(whole, [str(k) for k in whole if k != "hydra"]), overrides=typed)
    execute(settings, folder, lambda line: None, lambda: stop, progress=False)


def plant(name: str) -> None:
    """Plant a fault that a card would refuse, or that would make it wait for every token; or make small what is large on it."""
    from rlrt.model import forward
    from rlrt.training import passes

    if name == "index":  # an index that stays on the CPU
        before = forward.response_hidden
        forward.response_hidden = passes.response_hidden = lambda model, rows: before(model, rows).index_select(
            0, torch.arange(sum(len(r.response_ids) for r in rows))
        )
    elif name == "mask":  # a tensor of the card added to one of the CPU
        scored = passes.has_old_logp
        passes.has_old_logp = lambda learner, signals: (
            scored(learner, signals) & (torch.ones(len(signals), device="cuda") > 0)
        )
    elif name == "chunks":  # no fault: the output layer's chunks are as small as a large vocabulary makes them
        forward.CHUNK_ELEMENTS["cuda"] = 112 * 40
    elif name == "wait":  # the host reads every token's log-probability
        from rlrt.model import head

        compute = head.log_softmax

        def reading(logits, temperature):
            logp = compute(logits, temperature)
            for row in logp:
                float(row[0].detach())
            return logp

        head.log_softmax = forward.log_softmax = reading
    elif name == "small":  # no fault: tensors of any size go to the host
        from rlrt.model import offload

        offload.LEAST = 0
    else:
        raise ValueError(name)


def counted_calls() -> tuple[list, list]:
    """Lists that grow with every forward pass, and with every token that the engine decodes for its rows."""
    from rlrt.model import packed
    from rlrt.model.dense import DenseDecoder

    passes, tokens = [], []
    hidden_states, step = packed.hidden_states, DenseDecoder.step
    packed.hidden_states = lambda *arguments: passes.append(1) or hidden_states(*arguments)
    DenseDecoder.step = lambda *arguments: tokens.append(1) or step(*arguments)
    return passes, tokens


def measured(case: str) -> dict:
    """A case's outcome."""
    COUNTS.clear()
    KERNELS.clear()
    overrides = case.split()
    planted = [o.removeprefix("plant=") for o in overrides if o.startswith("plant=")]
    overrides = [o for o in overrides if not o.startswith("plant=")]
    for name in planted:
        plant(name)
    passes, tokens = counted_calls()
    with tempfile.TemporaryDirectory() as made, card():
        folder = Path(made) / "run"
        run(overrides, folder, stop=True)
        run(overrides, folder, stop=False)
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    waits = {line: n for (kind, line), n in COUNTS.items() if kind == "WAIT"}
    return {
        "waits": waits,
        "operations": COUNTS["operations", ""],
        "passes": len(passes),
        "tokens": len(tokens),
        "kernels": dict(KERNELS),
        "steps": [row["step"] for row in rows],
        "to the host": {line: n for (kind, line), n in COUNTS.items() if kind == "copy to the host"},
        "numbers": {k: v for k, v in rows[-1].items() if not k.startswith("time/")},
        "finite": all(v == v for row in rows for k, v in row.items() if isinstance(v, float)),
    }


def main(out: str, cases: list[str]) -> None:
    """Run the cases and write their outcomes."""
    torch.set_num_threads(1)
    outcomes = {}
    for case in cases:
        try:
            outcomes[case] = measured(case)
        except Exception as error:
            traceback.print_exc(limit=-4)
            outcomes[case] = {"error": f"{type(error).__name__}: {error}"}
    Path(out).write_text(json.dumps(outcomes, indent=1))


def serve() -> None:
    """Run cases as they are asked for, each in a fork: what they import is imported once, what they plant is gone with them."""
    for name in ("rlrt.execution.execute", "transformers.models.qwen3.modeling_qwen3"):
        importlib.import_module(name)
    for line in sys.stdin:
        out, case = json.loads(line)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                main(out, [case])
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:]) if sys.argv[1:] else serve()
