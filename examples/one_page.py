"""RLRT (RLVR with Reversed Teacher, arXiv 2605.10781) on one page, by torch and transformers alone.

``python examples/one_page.py`` trains the embedded model on countdown. The model samples a group of rollouts for each prompt; a
checker gives each rollout the reward R = 1 (correct) or 0 (wrong). For token y_t of a rollout:

    A    = (R - mean R of the group) / (std R of the group + 1e-6)               group advantage
    D_t  = log P_S(y_t) - log P_T(y_t)            the teacher T is the student S itself, shown a correct sibling rollout
    w_t  = clip(exp(sign(A) D_t), 1 - eps_w, 1 + eps_w)                          weight; no gradient flows through D
    f_t  = (1 - lam) + lam w_t                    if the rollout is correct and has a correct sibling, else f_t = 1
    loss = - sum over all tokens of A f_t log P_S(y_t) / number of tokens        policy gradient, for a step of AdamW

A correct rollout learns most from the tokens that the teacher did not expect. With lam = 0 the gradient is that of GRPO.
"""

import random
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

FOLDER = Path(__file__).parents[1] / "rlrt" / "embedded"
APPLY = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}
STEP = re.compile(r"([0-9]{1,2})([+*-])([0-9]{1,2})=([0-9]{1,2})")


@dataclass
class Rollout:
    """A response to a prompt as token ids; ``teacher_ids`` is the teacher's prompt, or None without a correct sibling."""

    prompt_ids: list[int]
    response_ids: list[int]
    text: str
    reward: float
    teacher_ids: list[int] | None = None


def problem(rng):
    """Draw a question like ``17:3 4 5``: a target, and the numbers that reach the target."""
    a, b, c = numbers = [rng.randint(1, 15) for _ in range(3)]
    first = APPLY[rng.choice("+-*")](a, b)
    target = APPLY[rng.choice("+-*")](first, c)
    if 0 <= first <= 99 and 1 <= target <= 60:
        return f"{target}:{' '.join(map(str, rng.sample(numbers, 3)))}"
    return problem(rng)


def correct(question, text):
    """Check a response: attempts like ``3*4=12,12+5=17``, separated by ``;``. The last attempt must reach the target."""
    target, numbers = question.split(":")
    for attempt in text.split(";"):
        values = Counter(numbers.split())  # a step uses up two values and leaves its result
        for step in map(STEP.fullmatch, attempt.split(",")):
            used = Counter(step.group(1, 3) if step else [])
            if not (step and used <= values and str(APPLY[step[2]](int(step[1]), int(step[3]))) == step[4]):
                return False
            values = values - used + Counter([step[4]])
        if values.total() != 1:
            return False
    return values[target] == 1


def prompt_ids(tokenizer, question, sibling=None):
    """Write the student's prompt, or the teacher's prompt, which shows a correct sibling's text."""
    text = f"{question}>" if sibling is None else f"{question}|{sibling}>"
    return [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]


def graded(tokenizer, question, responses):
    """Make a group: check each response; a correct one's teacher is shown its first correct sibling with another text."""
    group = []
    for ids in responses:
        text = tokenizer.decode(ids, skip_special_tokens=True)
        reward = float(ids[-1] == tokenizer.eos_token_id and correct(question, text))
        group.append(Rollout(prompt_ids(tokenizer, question), ids, text, reward))
    for rollout in group:
        siblings = [r.text for r in group if r.reward == 1 and r.text != rollout.text]
        if rollout.reward == 1 and siblings:
            rollout.teacher_ids = prompt_ids(tokenizer, question, siblings[0])
    return group


def sample(model, tokenizer, questions, size):
    """Sample a group of ``size`` rollouts for each question, at temperature 1 over the whole vocabulary."""
    prompts = torch.tensor([prompt_ids(tokenizer, q) for q in questions])  # each has 7 tokens: there is no padding
    ids, end = prompts.repeat_interleave(size, 0), tokenizer.eos_token_id
    drawn = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, max_new_tokens=48)
    drawn = [response[: (*response, end).index(end) + 1] for response in drawn[:, ids.shape[1] :].tolist()]
    return [graded(tokenizer, q, drawn[i * size : (i + 1) * size]) for i, q in enumerate(questions)]


def log_probs(model, prompts, responses):
    """Compute the log-probability of every response token: one tensor for each response."""
    rows = [torch.tensor([*p, *r]) for p, r in zip(prompts, responses, strict=True)]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)  # padding on the right: causal attention ignores it
    logp = model(ids[:, :-1]).logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    return [logp[i, len(p) - 1 : len(row) - 1] for i, (p, row) in enumerate(zip(prompts, rows, strict=True))]


def rlrt_loss(model, groups, lam, eps_w):
    """Return the loss of a step, and the D of all tokens that have a weight."""
    rollouts, rewards = [r for group in groups for r in group], [torch.tensor([r.reward for r in g]) for g in groups]
    advantages = torch.cat([(reward - reward.mean()) / (reward.std() + 1e-6) for reward in rewards])
    student = log_probs(model, [r.prompt_ids for r in rollouts], [r.response_ids for r in rollouts])
    terms, gaps = [], [torch.zeros(0)]
    for rollout, advantage, logp in zip(rollouts, advantages, student, strict=True):
        factor = 1.0
        if rollout.teacher_ids is not None and advantage != 0:
            gap = (logp - log_probs(model, [rollout.teacher_ids], [rollout.response_ids])[0]).detach()
            weight = (advantage.sign() * gap).exp().clamp(1 - eps_w, 1 + eps_w)
            factor = (1 - lam) + lam * weight
            gaps.append(gap)
        terms.append(-advantage * factor * logp)
    return torch.cat(terms).mean(), torch.cat(gaps)


def main(steps=30, every=5, prompts=16, size=8, lam=0.5, eps_w=0.2, lr=1e-3, seed=0):
    """Train; every few steps print the reward, the mean of D, and the share correct of 256 problems drawn apart."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    rng, test = random.Random(seed), [problem(random.Random(f"test {i}")) for i in range(256)]
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    model = AutoModelForCausalLM.from_pretrained(FOLDER, use_safetensors=True)
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.0)
    for step in range(1, steps + 1):
        groups = sample(model, tokenizer, [problem(rng) for _ in range(prompts)], size)
        loss, gap = rlrt_loss(model, groups, lam, eps_w)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        if step == 1 or step % every == 0:
            reward = sum(r.reward for group in groups for r in group) / (prompts * size)
            share = sum(group[0].reward for group in sample(model, tokenizer, test, 1)) / len(test)
            print(f"step {step:3}   reward {reward:.3f}   D {gap.mean():+.3f} nats   share correct {share:.3f}")


if __name__ == "__main__":
    main()
