"""End to end on the hub's formats: a BPE tokenizer of ours with Qwen3's chat layout, GSM8K's parquet, math-verify."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from rlrt.records.folder import RunFolder
from tests.forked import forked
from tests.hub import gsm8k_folder, jsonl, model_folder, problem, tokenizer


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A model folder whose answers are right now and then."""
    from transformers import AutoModelForCausalLM

    from rlrt.model.prompting import PromptBuilder
    from rlrt.types import Prompt
    from tests.helpers import settings

    folder = model_folder(tmp_path_factory.mktemp("models") / "m", "hybrid")
    words, model = tokenizer("hybrid"), AutoModelForCausalLM.from_pretrained(folder)
    template = settings("model=qwen3_0.6b").model.prompt_template
    builder = PromptBuilder(words, "chat", template, False, "{prompt}{solution}")
    generator = torch.Generator().manual_seed(0)
    rows = []
    for a in range(1, 6):
        for b in range(1, 6):
            ids = builder.student(Prompt("x", problem(a, b)[0], "", instruction=INSTRUCTION))
            rows.append((ids, a + b))
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(250):
        picked = torch.randint(0, len(rows), (16,), generator=generator).tolist()
        wrong = torch.rand(16, generator=generator) < 0.35
        shift = torch.randint(1, 4, (16,), generator=generator).tolist()
        # two wordings: no teacher shows a rollout its own
        ends = torch.randint(0, 2, (16,), generator=generator).tolist()
        texts = [
            f"It is \\boxed{{{rows[i][1] + (s if w else 0)}}}{'.' * e}<|im_end|>"
            for i, w, s, e in zip(picked, wrong, shift, ends, strict=True)
        ]
        full = [
            rows[i][0] + words(t, add_special_tokens=False)["input_ids"] for i, t in zip(picked, texts, strict=True)
        ]
        width = max(map(len, full))
        ids = torch.tensor([f + [0] * (width - len(f)) for f in full])
        labels = torch.tensor([[-100] * len(rows[i][0]) + f[len(rows[i][0]) :] + [-100] * (width - len(f))
                               for i, f in zip(picked, full, strict=True)])  # fmt: skip
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
    model.save_pretrained(folder)
    return folder


INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."


def rlrt(cwd, module, *words):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", f"rlrt.{module}", *words], cwd=cwd, capture_output=True, text=True, check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def quick(cwd, module, *words):
    done = forked(module, words, cwd)
    assert done.returncode == 0, done.stderr[-3000:]


def test_train_evaluate_serve_and_start_again(taught, tmp_path):
    data = gsm8k_folder(tmp_path / "gsm8k")
    common = (
        "model=qwen3_0.6b", "model.context_length=512", "data=gsm8k", f"data.path={data}", "tracking=none", "threads=1",
        "engine.max_new_tokens=16", "train.prompts_per_step=4", "train.eval_every=0", "train.lr=1e-3", "eval.prompts=6",
        "eval.samples_per_prompt=4",
    )  # fmt: skip
    quick(tmp_path, "run", *common, f"model.path={taught}", "method=rlrt", "train.steps=3", "hydra.run.dir=first")
    first = RunFolder(tmp_path / "first")
    record = first.record.read()
    assert first.summary()["state"] == "finished"
    assert 0 < record[0]["eval/avg_at_4"] < 1
    for row in record[1:]:
        assert row["reward/verifier_error_share"] == 0
        assert 0 < row["reward/mean"] < 1
        assert row["rollout/truncated_share"] < 0.5
    assert any(row["teacher/share"] > 0 and row["rlrt/gap_abs_mean"] > 0 for row in record[1:])
    sample = first.samples.read()[0]
    assert "apples" in sample["prompt"]

    suite = jsonl(
        tmp_path / "aime" / "test.jsonl", [{"problem": problem(a, a)[0], "answer": 2 * a} for a in range(1, 6)]
    )
    suites = ("eval=aime24", f"eval.suites.aime24.path={suite}", "eval.suites.aime24.problems=5")
    said = rlrt(tmp_path, "evaluate", "first", *suites, "eval.samples_per_prompt=8")
    assert "aime24" in said
    (folder,) = (tmp_path / "first" / "evaluations").iterdir()
    found = json.loads((folder / "results.json").read_text())
    assert found["suites"]["aime24"]["problems"] == 5
    assert 0 < found["suites"]["aime24"]["avg_at_8"][0] < 1
    assert (found["eval"]["temperature"], found["eval"]["top_p"], found["eval"]["top_k"]) == (
        0.7,
        0.8,
        20,
    )  # recommended

    quick(tmp_path, "run", *common, "model.path=first", "method=opsd", "train.steps=1", "hydra.run.dir=second")
    second = RunFolder(tmp_path / "second").record.read()
    assert second[0]["eval/greedy"] == record[-1]["eval/greedy"]  # it starts where the first one ended
    assert second[0]["eval/avg_at_4"] == record[-1]["eval/avg_at_4"]
    assert second[1]["teacher/share"] == 1.0  # GSM8K's solutions are shown

    served_as_transformers_would(tmp_path / "first" / "checkpoints" / "step_3")


def served_as_transformers_would(checkpoint):
    """``generate`` on the folder, with nothing of ours, stops at the stop tokens and gives our engine's greedy tokens."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rlrt.engines.hf import HfEngine
    from rlrt.model.load import load
    from rlrt.types import Sampling

    model, words = AutoModelForCausalLM.from_pretrained(checkpoint), AutoTokenizer.from_pretrained(checkpoint)
    text = [{"role": "user", "content": f"{problem(3, 4)[0]}\n{INSTRUCTION}"}]
    ids = words.apply_chat_template(
        text, add_generation_prompt=True, enable_thinking=False, return_tensors="pt", return_dict=False
    )
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False)[
        0, ids.shape[1] :
    ].tolist()
    mine, _ = load(str(checkpoint), None, "sdpa")
    engine = HfEngine(max_new_tokens=16, grade_truncated=False, temperature=1.0, max_rows=4)
    engine.load(mine, mine.generation_config.eos_token_id, 0)
    ((_, _, greedy),) = engine.sample([ids[0].tolist()], [[0]], Sampling(0.0))
    assert out == greedy.token_ids
    assert words.convert_ids_to_tokens(out[-1]) == "<|im_end|>"
    assert "\\boxed{" in words.decode(out)
