"""The sections of a config that are the same for every run. Defaults: ``conf/config.yaml`` and its groups.

Sections whose keys depend on a choice (``method``, ``data``, ``engine``) are declared by the class they name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rlrt.keys import key

LARGEST_BUDGET = 16384
"""Most tokens of ``train.token_budget=auto``."""


@dataclass(frozen=True)
class Model:
    """``model.*``: which weights, and how a prompt is written for them."""

    path: str = key(
        "hub id or local folder in the hub's format; 'embedded' is the tiny Qwen3 inside the package, 'testbed/base' and the "
        "like are the testbed's (docs/testbed.md)"
    )
    revision: str | None = key("hub revision (branch, tag or commit); null: the newest")
    context_length: int | None = key(
        "tokens that prompt and response may have together; null: the positions of the model's own config",
        "tokens",
        least=1,
    )
    stop_tokens: list[str] | None = key(
        "tokens that end a response; null: those of the model's own generation config, or else the tokenizer's end of sequence"
    )
    style: str = key("how a prompt becomes tokens", choices=("plain", "chat"))
    prompt_template: str = key(
        "what the model is asked: {prompt} stands for the problem, {instruction} for how the data wants the answer given"
    )
    examples: int = key(
        "worked examples of the data (data.examples) that stand before every question, at most; in style chat as earlier turns",
        least=0,
    )
    bos: str = key(
        "whether a plain prompt begins with the beginning of sequence; auto: as the tokenizer begins a text; always: wherever "
        "the tokenizer has one",
        choices=("auto", "always", "never"),
    )
    thinking: bool | None = key(
        "thinking mode of a hybrid model's chat template; null: the template has no such switch"
    )
    sampling_temperature: float = key(
        "temperature that its makers recommend; evaluation suites use it", above=0, least=0.001, most=100
    )
    sampling_top_p: float = key(
        "nucleus that its makers recommend; evaluation suites use it", above=0, least=1e-3, most=1
    )
    sampling_top_k: int = key("top-k that its makers recommend, 0: none; evaluation suites use it", least=0)
    wording: str = key("how procedural tasks word their prompts for this model", choices=("symbols", "words"))
    attn_implementation: str = key("attention kernel of transformers", choices=("sdpa", "eager", "flash_attention_2"))
    gradient_checkpointing: bool = key("recompute activations in the backward pass to save memory")
    offload_activations: bool = key(
        "keep in the host's memory what the layers are recomputed from, on a GPU; needs gradient_checkpointing"
    )
    lora: int | None = key(
        "rank of low-rank adapters that are trained instead of the weights (peft); null: all weights",
        least=1,
        most=8192,
    )
    lora_alpha: float = key("scale of the adapters: their product is multiplied by lora_alpha / lora", above=0)
    lora_targets: list[str] = key("names of the linear layers that get an adapter")


@dataclass(frozen=True)
class Train:
    """``train.*``: the loop and the optimiser."""

    steps: int = key("updates of the run; each samples prompts_per_step x rollouts_per_prompt rollouts", least=1)
    prompts_per_step: int = key("prompts sampled in one step", least=1)
    rollouts_per_prompt: int = key("rollouts of one prompt: the size of a group", least=1)
    minibatches: int = key("optimiser steps made of one step's rollouts, each on whole groups", least=1)
    lr: float = key("peak learning rate of AdamW", above=0, most=10)
    lr_schedule: str = key("learning rate after the warm-up", choices=("constant", "linear", "cosine"))
    warmup_steps: int = key("steps over which the learning rate rises linearly from 0", "steps", least=0)
    weight_decay: float = key("decoupled weight decay of AdamW", least=0)
    beta1: float = key("AdamW's decay of the first moment", least=0, most=1)
    beta2: float = key("AdamW's decay of the second moment", least=0, most=1)
    max_grad_norm: float = key("gradients are scaled down to this norm", above=0)
    clip_low: float = key("policy ratio may fall to 1 - clip_low", least=0, most=1)
    clip_high: float = key("policy ratio may rise to 1 + clip_high", least=0)
    clip_dual: float | None = key(
        "policy ratio at a negative advantage may rise to this, such as 3, before the loss ends there; null: without end",
        above=1,
    )
    old_logp: str = key(
        "the probabilities that the policy ratio divides by: trainer: its own at rollout time, by a scoring pass where that is "
        "needed, and importance weights correct for the sampler; sampler: those that the tokens were sampled with, without a "
        "pass, and the ratio itself corrects, within its clip",
        choices=("trainer", "sampler"),
    )
    aggregation: str = key("what a token weighs in the loss", choices=("token", "sequence", "constant"))
    kl_coef: float = key("weight of the KL penalty to the step-0 policy; 0: none", least=0)
    kl_estimator: str = key(
        "estimator of that KL: k1 = -r, k2 = r^2/2, k3 = e^r - 1 - r, with r = log(reference / policy); k1 has the gradient of "
        "k2, in expectation that of the KL (its own is 0 there; verl's k1+); k3's is another",
        choices=("k1", "k2", "k3"),
    )
    max_refills: int = key(
        "dynamic sampling: times that groups without signal are replaced by new prompts", least=0, most=100
    )
    mixed_groups_only: bool = key(
        "advantage 0 in a group whose rollouts are all correct or all wrong, also where shaped rewards differ there"
    )
    overlong_cache: int = key(
        "soft overlong penalty: tokens before max_new_tokens at which it starts; 0: none", "tokens", least=0
    )
    overlong_weight: float = key(
        "that penalty at max_new_tokens; 0.5 of a reward of 1 or 0 is DAPO's 1 of a reward of 1 or -1", least=0
    )
    sample_ahead: bool = key(
        "sample the next step's rollouts while this one's update runs, by the weights from before it; importance weights "
        "correct for that (engines with weights of their own)"
    )
    importance_level: str = key(
        "engines with weights of their own: a token's loss is multiplied by its own ratio trainer / sampler, or by the product "
        "of its rollout's ratios; either at most engine.importance_clip",
        choices=("token", "sequence"),
    )
    importance_token_bounds: list[float] | None = key(
        "[LOW,HIGH]: a token whose ratio trainer / sampler is outside adds nothing to the gradient; null: none"
    )
    importance_sequence_bounds: list[float] | None = key(
        "[LOW,HIGH]: a rollout whose product of the tokens' ratios is outside adds nothing to the gradient; null: none"
    )
    importance_geometric_bounds: list[float] | None = key(
        "[LOW,HIGH]: a rollout whose geometric mean of the tokens' ratios is outside, such as [0.99,1.01], adds nothing to the "
        "gradient; null: none"
    )
    importance_veto: float | None = key(
        "a rollout with a token whose ratio is below this, such as 1e-4, adds nothing to the gradient; null: none",
        above=0,
    )
    offload: str = key(
        "what lies in the host's memory while rollouts are sampled and scored, on a GPU: AdamW's moments, or nothing",
        choices=("none", "optimiser"),
    )
    token_budget: int | str = key(
        f"tokens of one micro-batch: each prompt once, and the responses to it; auto: at a run's start, as many as fit by the "
        f"estimate into the memory that is free, at most {LARGEST_BUDGET}",
        "tokens",
        least=1,
    )
    save_every: int = key("steps between checkpoints; the end is always saved; 0: only the end", "steps", least=0)
    save_minutes: float = key(
        "a checkpoint is also written at the first step that ends this long after the last one; 0: by steps alone",
        "minutes",
        least=0,
    )
    save_async: bool = key(
        "write checkpoints while the next steps run, from a copy in host memory; false: training waits for the disk"
    )
    save_dtype: str = key(
        "weights in the files that transformers and vLLM read; with bfloat16 the trainer's float32 weights are kept beside",
        choices=("float32", "bfloat16"),
    )
    keep_last: int = key("checkpoints kept; 0: all", least=0)
    keep_best: str | None = key(
        "metric, such as eval/greedy: the checkpoint of its highest value is written and kept too; null: none"
    )
    stop_on_alarm: bool = key("end a run for good at its first alarm; its summary says which")
    eval_every: int = key("steps between evaluations; start and end always; 0: only those", "steps", least=0)

    @property
    def budget(self) -> int:
        """Return ``token_budget`` as a number; ``auto`` that no run has settled, as in an analysis, is ``LARGEST_BUDGET``."""
        return self.token_budget if isinstance(self.token_budget, int) else LARGEST_BUDGET


@dataclass(frozen=True)
class Teacher:
    """``teacher.*``: the same model with a solution in its context."""

    weights: str = key("whose weights the teacher has", choices=("live", "old", "snapshot", "ema", "frozen"))
    sync_steps: int = key("steps between copies of the student, for weights=snapshot", "steps", least=1)
    ema_rate: float = key("share of the student mixed in after each optimiser step, for weights=ema", least=0, most=1)
    context: str = key(
        "what the teacher is shown: sibling (another correct rollout), wrong_sibling, reference (the data's solution), "
        "reference_alone (without the question), answer or hint; a sibling's choice after a colon: first, shortest, longest, "
        "least_like_mine or random; how much of a solution after @, such as reference@0.5"
    )
    on_unique_correct: str = key(
        "under context=sibling, the context of a correct rollout without a correct sibling of another text: none, itself, or "
        "the reference solution",
        choices=("plain", "self", "reference"),
    )
    template: str = key("the teacher's prompt; {prompt} and {solution} stand for the texts")
    max_context_tokens: int = key(
        "longest prompt of a teacher; prompt and response must also fit into the model's context", "tokens", least=1
    )
    too_long: str = key(
        "what a rollout gets whose teacher's prompt is too long: no teacher, or the longest shorter sibling that fits; without "
        "a teacher it is counted",
        choices=("no_teacher", "shorter_sibling"),
    )
    probe_prompts: int = key(
        "prompts on which a run asks, before its first update, whether the teacher's context helps; at most those of two "
        "steps; 0: none",
        least=0,
    )


@dataclass(frozen=True)
class Eval:
    """``eval.*``: evaluation on held-out prompts."""

    samples_per_prompt: int = key("k of avg@k and of the largest pass@k", least=1)
    prompts: int = key("held-out prompts used; 0: all", least=0)
    temperature: float = key("sampling temperature of avg@k and pass@k", above=0, least=0.001, most=100)
    top_p: float = key(
        "nucleus of avg@k and pass@k: the fewest most likely tokens with this probability", above=0, least=1e-3, most=1
    )
    top_k: int = key("most likely tokens that are considered in avg@k and pass@k; 0: all", least=0)
    seed: int = key("seed of the evaluation's samples, the same for every run so that runs compare", least=0)
    suites: dict[str, Any] = key(
        "benchmarks by name, instead of held-out prompts: eval=paper, or eval.suites.NAME.path=..."
    )


@dataclass(frozen=True)
class Tracking:
    """``tracking.*``: where a run is recorded besides its own folder."""

    uri: str | None = key("MLflow tracking URI (sqlite:///FILE or http(s)://HOST); null: only the run's folder")
    trackio: str | None = key(
        "folder of Trackio's local store, which gets the same numbers (extra trackio); null: none"
    )
    experiment: str = key("MLflow experiment, and Trackio's project")
    artifacts: str = key("folder of MLflow's artifacts when the URI is a local database")
    samples_every: int = key("steps between stored rollouts; 0: none", "steps", least=0)
    samples: int = key("rollouts stored each time", least=0)
    show_samples: int = key("of the rollouts that were stored last, how many are printed when the run ends", least=0)


@dataclass(frozen=True)
class Distributed:
    """``distributed.*``: one run on several processes (torchrun, or the launchers' ``tasks_per_node``)."""

    strategy: str = key(
        "ddp: each process holds the whole model; fsdp: a share of its weights, gradients and optimiser states",
        choices=("ddp", "fsdp"),
    )
    patience_s: float = key(
        "how long one process may keep the others waiting before the run ends and names it", "seconds", above=0
    )
    meeting_s: float = key("how long processes wait for each other at the start of a run", "seconds", above=0)
    interface: str | None = key(
        "network interface by which processes speak to each other (gloo, NCCL), on every machine; null: they choose"
    )


@dataclass(frozen=True)
class Trial:
    """``trial.*``: what one trial of a search (``hydra/sweeper=optuna``) is made of; nothing else reads it."""

    seeds: list[int] | None = key(
        "a trial is the mean over runs with these seeds; null: one run with the config's seed"
    )


@dataclass(frozen=True)
class Settings:
    """A whole run, checked; nothing changes it afterwards.

    ``method``, ``data``, ``engine`` and ``eval.suites`` hold instances of the classes that the config names, with their keys
    and nothing else: ``rlrt.execution.parts`` makes the objects that a run prepares and runs.
    """

    seed: int
    resume: str
    origin: str | None
    device: str
    dtype: str
    deterministic: bool
    threads: int | None
    model: Model
    train: Train
    teacher: Teacher
    eval: Eval
    tracking: Tracking
    trial: Trial
    distributed: Distributed
    method: Any
    data: Any
    engine: Any
    names: dict[str, str] = field(default_factory=dict)
    plain: dict[str, Any] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Top:
    """Keys that stand alone."""

    seed: int = key("seed of prompts, rollouts and everything random", least=0)
    resume: str = key(
        "auto: go on if the folder holds a run; never: start anew; must: fail if there is none",
        choices=("auto", "never", "must"),
    )
    origin: str | None = key(
        "folder of a finished run; +from=RUN sets it: a config that differs in more train.steps alone goes on from its last "
        "checkpoint, where the learning rate is constant"
    )
    device: str = key("auto, cpu, cuda or cuda:N")
    dtype: str = key(
        "precision of forward and backward passes; auto: bfloat16 on a GPU, float32 on the CPU; weights are float32",
        choices=("auto", "float32", "bfloat16"),
    )
    deterministic: bool = key(
        "on a GPU: torch's deterministic algorithms, cuBLAS's fixed workspace, vLLM's batch-invariant mode; slower"
    )
    threads: int | None = key("CPU threads of torch; null: torch's own choice", least=1, most=1024)


SECTIONS = {
    "model": Model,
    "train": Train,
    "teacher": Teacher,
    "eval": Eval,
    "tracking": Tracking,
    "trial": Trial,
    "distributed": Distributed,
}
