"""Laws that every shipped method keeps, on random rollouts."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlrt.methods.signals import Signals, TeacherSignal
from tests.helpers import METHODS, method_of, signals

F64 = torch.float64
BUILT = {name: method_of(name) for name in METHODS}
WEIGHTED = [name for name in METHODS if hasattr(BUILT[name].credit, "lambda_init")]


@st.composite
def batches(draw, equal_rewards: bool = False) -> dict:
    groups, size = draw(st.integers(1, 3)), draw(st.integers(2, 4))
    count = groups * size
    if equal_rewards:
        reward = [draw(st.sampled_from([0.0, 1.0]))] * count
    else:
        reward = draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=count, max_size=count))
    length = draw(st.lists(st.integers(1, 5), min_size=count, max_size=count))
    seed = draw(st.integers(0, 10_000))
    has = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    return {"reward": reward, "length": length, "size": size, "seed": seed, "has": has}


def build(drawn: dict) -> Signals:
    """Random log-probabilities for what was drawn (outside the strategy: shape checks draw random numbers too)."""
    g = torch.Generator().manual_seed(drawn["seed"])
    count, width = len(drawn["reward"]), max(drawn["length"])
    student = -3 * torch.rand(count, width, generator=g, dtype=F64)
    teacher = -3 * torch.rand(count, width, generator=g, dtype=F64)
    group = [i // drawn["size"] for i in range(count)]
    batch = signals(drawn["reward"], group, drawn["length"], student, teacher, drawn["has"], step=7)
    entropy = torch.rand(count, width, generator=g, dtype=F64)
    batch.entropy_BT = entropy * batch.mask_BT
    second = TeacherSignal(batch.teachers[0].has_B, -3 * torch.rand(count, width, generator=g, dtype=F64), entropy)
    batch.teachers[0].entropy_BT = entropy.flip(1) * batch.mask_BT
    batch.teachers.append(second)  # a second context, for credits that contrast
    return batch


def credit(name: str, batch: Signals) -> torch.Tensor:
    method = BUILT[name]
    return method.credit(method.advantage(batch), batch).advantage_BT


def with_teacher(batch: Signals, logp_BT: torch.Tensor) -> Signals:
    other = copy.deepcopy(batch)
    other.teachers[0].logp_BT = logp_BT
    return other


@pytest.mark.parametrize("name", METHODS)
@given(drawn=batches())
def test_zero_outside_the_mask(name, drawn):
    batch = build(drawn)
    assert (credit(name, batch)[~batch.mask_BT] == 0).all()


@pytest.mark.parametrize("name", METHODS)
@given(drawn=batches(), seed=st.integers(0, 1000))
def test_permuting_rollouts_permutes_the_result(name, drawn, seed):
    batch = build(drawn)
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(credit(name, batch.rows(order)), credit(name, batch)[order], atol=1e-12)


@pytest.mark.parametrize("name", METHODS)
@given(drawn=batches())
def test_groups_do_not_affect_each_other(name, drawn):
    batch = build(drawn)
    if BUILT[name].credit.batch_statistics:
        return
    whole = credit(name, batch)
    first = batch.group_B == 0
    assert torch.allclose(credit(name, batch.rows(first)), whole[first], atol=1e-12)


@pytest.mark.parametrize("name", METHODS)
@given(drawn=batches(equal_rewards=True))
def test_equal_rewards_are_finite_and_zero_where_multiplicative(name, drawn):
    batch = build(drawn)
    result = credit(name, batch)
    assert torch.isfinite(result).all()
    advantage = BUILT[name].advantage
    if BUILT[name].credit.multiplicative and not advantage.shapes_rewards and advantage.taught() is None:
        assert (result == 0).all()


@pytest.mark.parametrize("name", METHODS)
@given(drawn=batches())
def test_inputs_stay_untouched(name, drawn):
    batch = build(drawn)
    before = copy.deepcopy(batch)
    credit(name, batch)
    for field in ("reward_B", "logp_BT", "mask_BT", "token_BT", "entropy_BT"):
        assert torch.equal(getattr(batch, field), getattr(before, field))
    assert torch.equal(batch.teachers[0].logp_BT, before.teachers[0].logp_BT)


@pytest.mark.parametrize("name", WEIGHTED)
@given(drawn=batches())
def test_without_the_coefficient_a_weight_method_is_grpo_to_the_bit(name, drawn):
    batch = build(drawn)
    method = copy.deepcopy(BUILT[name])
    method.credit.lambda_init = 0.0
    plain = BUILT["grpo"].credit(method.advantage(batch), batch).advantage_BT
    assert torch.equal(method.credit(method.advantage(batch), batch).advantage_BT, plain)


@pytest.mark.parametrize("name", WEIGHTED)
@given(drawn=batches())
def test_a_teacher_that_agrees_changes_nothing(name, drawn):
    batch = build(drawn)
    same = with_teacher(batch, batch.logp_BT.clone())
    plain = BUILT["grpo"].credit(BUILT[name].advantage(batch), batch).advantage_BT
    assert torch.allclose(credit(name, same), plain, atol=1e-12)


@pytest.mark.parametrize("name", WEIGHTED)
@given(drawn=batches())
def test_weights_stay_within_the_clip(name, drawn):
    batch = build(drawn)
    slot = BUILT[name].credit
    plain = BUILT["grpo"].credit(BUILT[name].advantage(batch), batch).advantage_BT
    factor = (credit(name, batch) / plain)[plain != 0]
    half = slot.lambda_init * slot.epsilon_w
    assert ((factor >= 1 - half - 1e-12) & (factor <= 1 + half + 1e-12)).all()


@pytest.mark.parametrize("name", METHODS)
@given(drawn=batches())
def test_untouched_rollouts_are_those_no_term_touches(name, drawn):
    batch = build(drawn)
    method = BUILT[name]
    batch.advantage_B = method.advantage(batch)
    advantage_BT = method.credit(batch.advantage_B, batch).advantage_BT
    has = batch.teachers[0].has_B
    touched = method.touched_rows(advantage_BT, has, batch)
    for row in range(len(batch)):
        policy = method.policy_loss is not None and bool((advantage_BT[row] != 0).any())
        wanted = [bool(term.teacher_rows(batch)[row]) and bool(has[row]) for term in method.auxiliary]
        dense = any(not t.needs_teacher or w for t, w in zip(method.auxiliary, wanted, strict=True))
        assert bool(touched[row]) == (policy or dense)
