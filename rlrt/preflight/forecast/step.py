"""Seconds of a step by phase: operations and bytes divided by the rates of a card.

A pass counts 2 operations for each weight of the layers' matrices and of the output layer and each token, and 4 for each pair
of query and key and each layer. In half precision one flash kernel skips what causality hides; in float32 response tokens see
their keys under a mask, on the full square, and prompts see half of theirs.
The update's backward pass counts twice its forward pass, attention's 2.5 times, since its kernel computes the scores again;
the output layer, and under ``model.gradient_checkpointing`` the layers too, run forward a second time.

Beside the first sums made on paper for this package (same rates; 1.7B on one card and 8B on eight; mean 4,096 and all 20,480),
seconds of scoring, update and vLLM's rollouts are .9 to 1.3 times as many. What differs, on purpose:

- In half precision no row is under a mask any more, and packing on a CPU core, which is added, is below a hundredth.
- The teacher's prompts are run too, so its seconds are 1.15 to 1.4 times as many.
- Rows of engine=hf are decoded in whole groups (16 rows of 1.7B, not 20), and its share of the bandwidth is assumed to be a
  half, not 65 %: 4.3 and 14 hours, where the paper sums said 1.5 to 3.5 and 8 to 12.
- An evaluation is of ``eval.prompts`` problems, which the recipe leaves at 256, not of the 500 that are held out.

Left out: the optimiser's step (below a second), traffic between cards (5 to 15 % under fsdp by sums; two nodes more), loading
and compiling, and that rows differ in length, which makes attention and cache up to twice as much as of equal rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from rlrt.config.schema import Train
from rlrt.execution.memory.lengths import TEMPLATE
from rlrt.execution.memory.passes import FLOAT
from rlrt.execution.probe import ANSWERS, STEPS, is_probed
from rlrt.methods.contexts import FromData, configured
from rlrt.model.packed import flash_takes
from rlrt.preflight.forecast.decoding import decode_s, on_server, rows_at_once, training_rows
from rlrt.preflight.forecast.work import PER_CONTEXT, SHOWN, TAUGHT, TRAINED, Work
from rlrt.sweep.disk import MOVING, numbers_bytes

PHASES = ("rollout", "scoring", "teacher", "update")
"""Phases of every step."""
SIBLINGS = 2
"""Different texts that a group is shown of its siblings: the first correct one, and to that the second."""
BACKWARD, ATTENTION_BACKWARD = 2.0, 2.5
"""Operations of a backward pass, in forward passes: of matrices, and of attention."""


@dataclass(frozen=True)
class Step:
    """A forecast in seconds.

    Attributes:
        rollout, scoring, teacher, update: of each step; ``scoring`` has the reference model of a KL penalty too.
        evaluation: of one evaluation.
        probe: of asking, once, whether the teacher's context helps; 0 where it is not asked.
        checkpoint: of one checkpoint.
        rows: rows that a process decodes at once.
        fits: False if not even one row fits a card beside the rest.
        ahead: True if rollouts are sampled beside the update, on other cards.
    """

    rollout: float
    scoring: float
    teacher: float
    update: float
    evaluation: float
    probe: float
    checkpoint: float
    rows: int
    fits: bool
    ahead: bool

    @property
    def total(self) -> float:
        """Return the seconds of a step, without evaluation and checkpoint."""
        learning = self.scoring + self.teacher + self.update
        return max(self.rollout, learning) if self.ahead else self.rollout + learning


@dataclass(frozen=True)
class Passed:
    """What a forward pass runs.

    Attributes:
        tokens: tokens that the layers see.
        masked: pairs of query and key under a mask.
        causal: pairs without a mask, of those that causality lets a query see.
    """

    tokens: float
    masked: float
    causal: float


def forecast(work: Work) -> Step:
    """Return the seconds of a step, of an evaluation, and of a checkpoint."""
    train = work.settings.train
    trained, taught = shares(work)
    before = teacher_prompt(work)
    return Step(
        rollout=decode_s(work, train.prompts_per_step, train.rollouts_per_prompt) * draws(work),
        scoring=forward_s(work, passed(work, 1.0, work.lengths.prompt)) * student_passes(work, taught),
        teacher=forward_s(work, teacher_passed(work, taught, before)) * teacher_passes(work),
        update=update_s(work, passed(work, trained, work.lengths.prompt)),
        evaluation=decode_s(work, work.evaluated, 1)
        + decode_s(work, work.evaluated, work.settings.eval.samples_per_prompt),
        probe=probe_s(work),
        checkpoint=checkpoint_bytes(work) / work.rates.disk.value,
        rows=training_rows(work),
        fits=rows_at_once(work)[1],
        ahead=train.sample_ahead and on_server(work),
    )


def probe_s(work: Work) -> float:
    """Return the seconds of ``rlrt.execution.probe``: a group for each prompt, answers to its teacher's prompts, both sides of
    D."""
    settings, prompt = work.settings, work.lengths.prompt
    if not is_probed(settings):
        return 0.0
    asked = min(settings.teacher.probe_prompts, STEPS * settings.train.prompts_per_step)
    rows = asked * settings.train.rollouts_per_prompt
    from_data = isinstance(configured(settings.teacher.context, settings.teacher.on_unique_correct), FromData)
    shown = asked * (1 if from_data else SIBLINGS)
    sampled = decode_s(work, asked, settings.train.rollouts_per_prompt) + decode_s(work, shown, ANSWERS)
    student = forward_s(work, rows_passed(work, rows, asked, prompt))
    return sampled + student + forward_s(work, rows_passed(work, rows, shown, teacher_prompt(work)))


def draws(work: Work) -> float:
    """Return how many times a step's prompts are sampled on average: dynamic sampling replaces groups without signal; a method
    that is taught the data's responses samples none."""
    if work.settings.method.advantage.taught() is not None:
        return 0.0
    train = work.settings.train
    return sum((1 - TRAINED) ** n for n in range(train.max_refills + 1))


def shares(work: Work) -> tuple[float, float]:
    """Return the shares of a step's rollouts that the update runs, and that get a teacher."""
    method, train = work.settings.method, work.settings.train
    mixed = 1 - (1 - TRAINED) ** (train.max_refills + 1)
    taught = 0.0
    if method.credit.needs_teacher:
        taught = TAUGHT * mixed / TRAINED
    if method.distils:
        taught = max(SHOWN, mixed)
    without_reward = train.kl_coef > 0 or method.advantage.taught() is not None
    touches_all = without_reward or any(not term.needs_teacher for term in method.auxiliary)
    trained = mixed if method.policy_loss is not None else 0.0
    return 1.0 if touches_all else max(trained, taught if method.distils else 0.0), taught


def passed(work: Work, share: float, before: float) -> Passed:
    """Return what a pass over a share of the step's rollouts runs behind prompts of ``before`` tokens, one for each group."""
    return rows_passed(work, share * work.rollouts, share * work.settings.train.prompts_per_step, before)


def teacher_passed(work: Work, share: float, before: float) -> Passed:
    """Return what the teacher runs: its prompt differs within a group."""
    return rows_passed(work, share * work.rollouts, share * work.rollouts / PER_CONTEXT, before)


def rows_passed(work: Work, rows: float, prompts: float, before: float) -> Passed:
    """Return what a pass over ``rows`` responses to ``prompts`` prompts runs, each prompt once where rows are packed."""
    response = work.response
    if not work.sizes.packed:
        return Passed(rows * (before + response), 0.0, rows * (before + response) ** 2 / 2)
    tokens, own = rows * response + prompts * before, prompts * before**2 / 2
    if flash_takes(work.layout.kind, work.number, work.sizes.head_size):
        return Passed(tokens, 0.0, own + rows * response * (before + response / 2))
    return Passed(tokens, rows * response * (before + response), own)


def forward_s(work: Work, run: Passed) -> float:
    """Return the seconds of a forward pass, shared by all cards, packing included."""
    linear, masked, causal = rates_in(work)
    weights = work.sizes.matrices + work.sizes.head
    seconds = 2 * weights * run.tokens / linear + pairs(work, run.masked) / masked + pairs(work, run.causal) / causal
    return (seconds + packing_s(work, run)) / work.layout.processes


def update_s(work: Work, run: Passed) -> float:
    """Return the seconds of forward and backward passes, shared by all cards, packing included."""
    linear, masked, causal = rates_in(work)
    backward = BACKWARD / 2 if work.sizes.adapted else BACKWARD  # adapters: the gradient of the inputs alone
    again = 1.0 if work.settings.model.gradient_checkpointing else 0.0
    layers = (1 + again + backward) * work.sizes.matrices
    head = (2 + backward) * work.sizes.head
    attention = 1 + again + ATTENTION_BACKWARD
    seconds = 2 * (layers + head) * run.tokens / linear
    seconds += attention * (pairs(work, run.masked) / masked + pairs(work, run.causal) / causal)
    return (seconds + packing_s(work, run)) / work.layout.processes


def pairs(work: Work, count: float) -> float:
    """Return the operations of all layers' attention on some pairs of query and key: scores, and sums of values."""
    return 4 * work.sizes.queries * work.sizes.layers * count


def packing_s(work: Work, run: Passed) -> float:
    """Return the seconds in which a core lays rows end to end and makes their masks, while the card waits."""
    if not work.sizes.packed:
        return 0.0
    return run.tokens * work.rates.packing_token_s.value + run.masked * work.rates.mask_pair_s.value


def rates_in(work: Work) -> tuple[float, float, float]:
    """Return the operations per second of matrices, masked and causal attention in the run's precision."""
    rates = work.rates
    if work.number == FLOAT:
        chosen = rates.linear_float32, rates.masked_float32, rates.causal_float32
    else:
        chosen = rates.linear_bf16, rates.masked_float32, rates.causal_bf16  # masks: heads that no flash kernel takes
    return chosen[0].value, chosen[1].value, chosen[2].value


def student_passes(work: Work, taught: float) -> float:
    """Return the scoring passes over all rollouts, as ``rlrt.training.scoring`` plans them; the reference model's included."""
    train, credit = work.settings.train, work.settings.method.credit
    reference = 1.0 if train.kl_coef > 0 else 0.0
    several = train.minibatches > 1
    live = credit.needs_teacher and several and work.settings.teacher.weights == "live"
    samples = work.settings.method.advantage.taught() is None
    for_ratio = train.old_logp == "trainer" and (several or (samples and not work.settings.engine.exact))
    for_credit = credit.needs_entropy or bool(credit.statistics())
    if for_ratio or (for_credit and not live):
        rows = 1.0
    elif live:
        rows = 0.0
    else:
        rows = taught if credit.needs_teacher else 0.0
    in_update = not several and work.layout.processes == 1
    if in_update and work.rollouts * work.response <= train.budget:  # the update's own pass is read
        rows = 0.0
    return reference + rows + (1.0 if live else 0.0)


def teacher_passes(work: Work) -> float:
    """Return the passes of the teacher over the rollouts that have one: in each context for the credit, in each that dense
    losses read for those, and once more for one that weighs its tokens."""
    method = work.settings.method
    credit = method.credit_contexts if method.credit.needs_teacher else 0
    weighs = any(term.needs_teacher and term.weighs_tokens for term in method.auxiliary)
    return float(credit + len(method.dense_places()) + weighs)


def teacher_prompt(work: Work) -> float:
    """Return the tokens of a teacher's prompt: with the data's solution as long as the longest, with another rollout as long as
    that is on average, and never longer than ``teacher.max_context_tokens`` allows."""
    teacher = work.settings.teacher
    if isinstance(configured(teacher.context, teacher.on_unique_correct), FromData):
        return float(work.lengths.context)
    return min(float(work.lengths.context), work.lengths.prompt + work.response + TEMPLATE)


def checkpoint_bytes(work: Work) -> int:
    """Return the bytes of a checkpoint: weights, the optimiser's two moments, and a teacher's weights where they move."""
    sizes, settings = work.sizes, work.settings
    own = sizes.trained if settings.model.lora is not None else sizes.weights  # of a teacher beside the student
    moving = own if settings.teacher.weights in MOVING else 0
    return numbers_bytes(
        sizes.weights, sizes.trained, moving, settings.train.save_dtype, settings.model.lora is not None
    )


def saves(train: Train, step_s: float) -> int:
    """Return the number of checkpoints of a run: every ``save_every`` steps or ``save_minutes`` minutes, and the end."""
    every = [train.save_every] if train.save_every else []
    if train.save_minutes > 0:
        every.append(max(1, math.ceil(60 * train.save_minutes / step_s)))
    return math.ceil(train.steps / min(every, default=train.steps))


def evaluations(train: Train) -> int:
    """Return the number of evaluations of a run: the start, every ``eval_every`` steps, and the end."""
    inside = train.steps // train.eval_every if train.eval_every else 0
    at_end = bool(train.eval_every) and train.steps % train.eval_every == 0
    return 1 + inside + (not at_end)


def as_long_as_may_be(work: Work) -> Step:
    """Return the forecast where every response has ``engine.max_new_tokens`` tokens."""
    return forecast(work.with_response(float(work.limit)))
