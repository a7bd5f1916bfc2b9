from __future__ import annotations

import pytest
import torch

from rlrt.engines.hf import HfEngine, choose
from rlrt.errors import UserError
from rlrt.execution.build import build_learner
from rlrt.model.forward import Row, score
from rlrt.types import Sampling
from tests.helpers import settings


@pytest.fixture(scope="module")
def learner():
    return build_learner(settings())


def engine(learner, **changes):
    made = HfEngine(**({"max_new_tokens": 30, "temperature": 1.0, "max_rows": 512, "grade_truncated": False} | changes))
    made.load(learner.policy.model, learner.policy.stop_ids, 0)
    return made


def sampled(engine, prompts, seeds, *more):
    """All generations, prompt by prompt; each of them comes once."""
    got = {(i, g): generation for i, g, generation in engine.sample(prompts, seeds, *more)}
    assert len(got) == sum(map(len, seeds))
    return [[got[i, g] for g in range(len(seeds[i]))] for i in range(len(prompts))]


def prompts(learner, *texts):
    return [[1, *learner.policy.tokenizer(t, add_special_tokens=False)["input_ids"]] for t in texts]


RAGGED = ("17:3 4 5>", "17:3 4 5|3*4=12,12+5=17>", "40:8 5 1>")


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.6])
def test_sampled_logp_and_entropy_equal_the_trainers(learner, temperature):
    given = prompts(learner, *RAGGED)
    groups = sampled(
        engine(learner, temperature=temperature), given, [[g + 10 * i for g in range(8)] for i in range(3)]
    )
    rows = [Row(p, g.token_ids) for p, group in zip(given, groups, strict=True) for g in group]
    logp, entropy = score(learner.policy.model, rows, temperature, 4096, 30)
    flat = [g for group in groups for g in group]
    assert len({len(g.token_ids) for g in flat}) > 1
    for i, g in enumerate(flat):
        assert torch.allclose(g.logp_T, logp[i, : len(g.token_ids)], atol=1e-5)
        assert torch.allclose(g.entropy_T, entropy[i, : len(g.token_ids)], atol=1e-5)


def test_a_rollout_depends_on_its_own_seed_alone(learner):
    given = prompts(learner, *RAGGED)
    together = sampled(engine(learner), given, [[1, 2, 3], [4], [5, 6]])
    alone = [sampled(engine(learner), [given[0]], [[2]])[0][0], sampled(engine(learner), [given[2]], [[6]])[0][0]]
    assert together[0][1].token_ids == alone[0].token_ids
    assert together[2][1].token_ids == alone[1].token_ids
    chunked = sampled(engine(learner, max_rows=1), given, [[1, 2, 3], [4], [5, 6]])
    assert [[g.token_ids for g in group] for group in chunked] == [[g.token_ids for g in group] for group in together]


def test_ends_at_the_first_end_of_sequence_or_the_limit(learner):
    groups = sampled(engine(learner, max_new_tokens=13), prompts(learner, "17:3 4 5>"), [list(range(64))])
    for g in groups[0]:
        assert g.token_ids.count(2) == (0 if g.truncated else 1)
        assert g.truncated or g.token_ids[-1] == 2
        assert len(g.token_ids) == 13 if g.truncated else len(g.token_ids) <= 13
    assert {g.truncated for g in groups[0]} == {True, False}


def test_greedy_is_arg_max(learner):
    given = prompts(learner, "17:3 4 5>")
    g = sampled(engine(learner), given, [[0]], Sampling(0.0))[0][0]
    ids = torch.tensor([given[0] + g.token_ids])
    with torch.no_grad():
        best = learner.policy.model(ids).logits[0, len(given[0]) - 1 : -1].argmax(-1)
    assert best.tolist() == g.token_ids


def test_every_token_can_be_sampled_with_its_probability():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.2]])).expand(20000, 3)
    uniform = torch.linspace(0, 1, 20001, dtype=torch.float64)[:-1]
    token, logp, entropy = choose(logits, Sampling(1.0), uniform)
    share = torch.bincount(token, minlength=3) / 20000
    assert torch.allclose(share, torch.tensor([0.5, 0.3, 0.2]), atol=1e-3)
    assert torch.allclose(logp.exp(), torch.tensor([0.5, 0.3, 0.2])[token])
    assert torch.allclose(entropy, torch.tensor(1.0296530).expand(20000), atol=1e-5)


def test_a_token_without_probability_is_never_sampled():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(3, 5)
    token, _, _ = choose(logits, Sampling(1.0), torch.tensor([0.0, 0.5, 1.0 - 1e-16], dtype=torch.float64))
    assert token.tolist() == [1, 3, 3]


def test_temperature_zero_is_refused_with_the_reason():
    with pytest.raises(UserError, match="all rollouts of a group are the same"):
        settings("engine.temperature=0")


def test_top_k_and_top_p_by_hand():
    """.5 .3 .15 .05: top-k 2 leaves .625 .375; top-p .8 stops at the token that reaches it, in whatever order they stand."""
    probability = torch.tensor([[0.05, 0.5, 0.15, 0.3]])
    uniform = torch.linspace(0, 1, 1001, dtype=torch.float64)[:-1]
    logits = probability.log().expand(1000, 4)

    def shares(**how):
        token, logp, entropy = choose(logits, Sampling(1.0, **how), uniform)
        assert torch.isfinite(entropy).all()
        assert torch.isfinite(logp).all()
        return torch.bincount(token, minlength=4) / 1000, entropy[0]

    share, entropy = shares(top_k=2)
    assert torch.allclose(share, torch.tensor([0.0, 0.625, 0.0, 0.375]), atol=2e-3)
    assert float(entropy) == pytest.approx(0.66156, abs=1e-4)
    assert torch.allclose(shares(top_p=0.8)[0], torch.tensor([0.0, 0.625, 0.0, 0.375]), atol=2e-3)
    assert torch.allclose(shares(top_p=0.81)[0], torch.tensor([0.0, 0.526, 0.158, 0.316]), atol=2e-3)
    assert torch.allclose(shares(top_p=0.4)[0], torch.tensor([0.0, 1.0, 0.0, 0.0]))
    assert torch.allclose(shares(top_k=3, top_p=0.8)[0], torch.tensor([0.0, 0.625, 0.0, 0.375]), atol=2e-3)
    assert torch.allclose(shares(top_k=9)[0], probability[0], atol=2e-3)
