"""The other side: TRL's trainers on the same work, a step for every line on standard input.

``train.lr`` is one at which weights stay; the reward is the same function of prompt and response; gradient checkpointing and
logging, which TRL has on by default, are off, since ours are.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.case import STILL, Case, settings_of
from benchmarks.speed.sides import peak_memory
from rlrt.errors import UserError
from rlrt.execution.build import prompt_builder
from rlrt.model.load import load, set_stop_tokens
from rlrt.types import Prompt

SDPO = {
    "distillation_mode": "full_logits",
    "distillation_alpha": 0.5,
    "teacher_model_kind": "ema",
    "reprompt_template": "{prompt}{solution}>",  # a '>' more than our template: TRL's prompt ends with its own
    "solution_template": "|{successful_previous_attempt}",
}


def main(case: Case, method: str) -> None:
    """Say ``ready``; then run a step for each line and answer with a line of figures."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from datasets import Dataset
    from transformers import TrainerCallback

    torch.set_num_threads(case.threads)
    settings = settings_of(case)
    task = settings.data
    prompts, folder = prepared(case, settings)

    def reward_function(**given: Any) -> list[float]:
        """As ours: what the verifier says, and 0 for a truncated response."""
        ended = [ids[-1] in trainer.eos_token_ids for ids in given["completion_ids"]]
        pairs = zip(given["prompts"], given["completions"], ended, strict=True)
        return [task.grade(prompts[p], c).reward if whole else 0.0 for p, c, whole in pairs]

    class Turns(TrainerCallback):
        """Waits for its turn before a step, and answers after it."""

        begin = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if not sys.stdin.readline():
                sys.exit(0)
            self.begin = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seconds = time.perf_counter() - self.begin
            seen = trainer._metrics["train"]
            flat = seen.get("frac_reward_zero_std") or seen.get("self_distillation/flat_group_fraction") or [-1.0]
            answer = {"seconds": seconds, "length": seen["completions/mean_length"][-1], "no_signal": flat[-1]}
            print(json.dumps(answer | {"peak": peak_memory()}), flush=True)

    common: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": case.prompts * case.samples,
        "num_generations": case.samples,
        "max_completion_length": case.max_new_tokens,
        "learning_rate": STILL,
        "max_steps": 100000,
        "temperature": 1.0,
        "beta": 0.0,
        "epsilon_high": 0.28,
        "use_cpu": True,
        "bf16": case.dtype == "bfloat16",
        "gradient_checkpointing": False,
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "max_grad_norm": 1.0,
    }
    data = Dataset.from_list([{"prompt": p} for p in prompts])
    shared = {"model": folder, "reward_funcs": reward_function, "train_dataset": data, "callbacks": [Turns()]}
    trainer: Any
    if method == "sd":
        from trl.experimental.sdpo import SDPOConfig, SDPOTrainer

        trainer = SDPOTrainer(args=SDPOConfig(**common, **SDPO), **shared)
    else:
        from trl import GRPOConfig, GRPOTrainer

        trainer = GRPOTrainer(args=GRPOConfig(**common, loss_type="dapo", scale_rewards=False), **shared)
    print("ready", flush=True)
    trainer.train()


def prepared(case: Case, settings: Any) -> tuple[dict[str, Prompt], str]:
    """The problems by the prompts that TRL is given, and the checkpoint with the stop tokens of our side.

    Raises:
        UserError: if TRL would tokenise a prompt otherwise than our side.
    """
    model, tokenizer = load(case.folder, None, "sdpa")
    set_stop_tokens(model, tokenizer, settings.model.stop_tokens)
    builder = prompt_builder(settings, tokenizer)
    prompts = {}
    for p in settings.data.train:
        ids = builder.student(p)
        text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        if tokenizer(text)["input_ids"] != ids:
            raise UserError(f"benchmarks/speed: TRL would tokenise this prompt otherwise than this project: {text!r}.")
        prompts[text] = p
    copied = Path(tempfile.mkdtemp())
    for file in Path(case.folder).resolve().iterdir():
        (copied / file.name).symlink_to(file)
    (copied / "generation_config.json").unlink()
    model.generation_config.save_pretrained(copied)
    return prompts, str(copied)


if __name__ == "__main__":
    arguments = json.loads(sys.argv[1])
    main(Case(**arguments["case"]), arguments["method"])
