"""Purified OPSD by hand and through an update against the formula, and D of RLRT in two parts."""

from __future__ import annotations

import math

import pytest
import torch

from rlrt.errors import UserError
from rlrt.methods.contexts import Default, Reference, Sibling, WithoutQuestion, resolved
from rlrt.methods.purified import PurifiedDistillation, purified_target
from rlrt.methods.sdpo import kl
from rlrt.methods.signals import Distributions, TeacherSignal
from rlrt.training.batch import batch_of, signals_of
from rlrt.training.update import learn
from tests.helpers import rollout, settings, signals
from tests.methods.test_rlrt import ADVANTAGE, credit
from tests.training.test_update import close, gradient, world

F64 = torch.float64


def logs(*rows):
    return torch.log(torch.tensor(rows, dtype=F64))


def term(**changes) -> PurifiedDistillation:
    return PurifiedDistillation(
        **({"purified_gamma": 1.0, "purified_base": "student", "purified_alpha": 0.0, "purified_top_k": 0} | changes)
    )


def viewed(student, teacher, alone) -> Distributions:
    return Distributions(student, teacher, torch.ones(len(student), dtype=F64), [alone])


STUDENT, TEACHER, ALONE = logs([0.5, 0.3, 0.2]), logs([0.6, 0.2, 0.2]), logs([0.3, 0.2, 0.5])


def test_the_target_by_hand():
    # P_S P_T / P_R: .5 * .6/.3 = 1, .3 * .2/.2 = .3, .2 * .2/.5 = .08; their sum is 1.38
    expected = [1 / 1.38, 0.3 / 1.38, 0.08 / 1.38]
    assert purified_target(STUDENT, TEACHER, ALONE, 1.0).exp()[0].tolist() == pytest.approx(expected, abs=1e-12)
    # gamma = 2: .5 * 4 = 2, .3, .2 * .16 = .032; their sum is 2.332
    expected = [2 / 2.332, 0.3 / 2.332, 0.032 / 2.332]
    assert purified_target(STUDENT, TEACHER, ALONE, 2.0).exp()[0].tolist() == pytest.approx(expected, abs=1e-12)


def test_the_loss_in_both_directions_by_hand():
    t, s = [1 / 1.38, 0.3 / 1.38, 0.08 / 1.38], [0.5, 0.3, 0.2]
    forward = sum(p * math.log(p / q) for p, q in zip(t, s, strict=True))
    reverse = sum(q * math.log(q / p) for p, q in zip(t, s, strict=True))
    for alpha, expected in ((0.0, forward), (1.0, reverse)):
        value = term(purified_alpha=alpha)(viewed(STUDENT, TEACHER, ALONE))
        assert float(value) == pytest.approx(expected, abs=1e-12)


def test_the_support_is_the_students_top_and_one_bucket():
    # the student's top token is 0; the others together have .5, .4 and .7: .5 * .6/.3 = 1 and .5 * .4/.7 = .2857
    rest = 0.5 * 0.4 / 0.7
    t = [1 / (1 + rest), rest / (1 + rest)]
    expected = t[0] * math.log(t[0] / 0.5) + t[1] * math.log(t[1] / 0.5)
    assert float(term(purified_top_k=1)(viewed(STUDENT, TEACHER, ALONE))) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("top_k", [0, 2])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("agree", [True, False])
def test_without_gamma_or_without_a_residual_the_student_stays(alpha, top_k, agree):
    """gamma = 0, or P_T = P_R: the target is the student itself, and the gradient toward oneself is 0."""
    g = torch.Generator().manual_seed(2)
    logits, teacher, alone = (torch.randn(4, 6, dtype=F64, generator=g) for _ in range(3))
    logits.requires_grad_()
    alone = teacher if agree else alone
    one = term(purified_gamma=1.0 if agree else 0.0, purified_alpha=alpha, purified_top_k=top_k)
    value = one(viewed(logits.log_softmax(-1), teacher.log_softmax(-1), alone.log_softmax(-1)))
    value.sum().backward()
    assert value.detach().abs().max() < 1e-12
    assert logits.grad.abs().max() < 1e-12


def test_the_gradient_is_the_students_alone_and_that_of_cross_entropy():
    given = ([[0.3, 0.1, -0.2]], [[2.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]])
    logits, teacher, alone = (torch.tensor(row, dtype=F64).requires_grad_() for row in given)
    student = logits.log_softmax(-1)
    term()(viewed(student, teacher.log_softmax(-1), alone.log_softmax(-1))).sum().backward()
    assert teacher.grad is None
    assert alone.grad is None
    target = purified_target(student.detach(), teacher.detach().log_softmax(-1), alone.detach().log_softmax(-1), 1.0)
    assert torch.allclose(logits.grad, student.detach().exp() - target.exp(), atol=1e-12)


def test_tokens_that_both_teachers_exclude_stay_finite():
    student = logs([0.5, 0.3, 0.2])
    teacher, alone = logs([1.0, 0.0, 0.0]), logs([0.5, 0.5, 0.0])
    target = purified_target(student, teacher, alone, 1.0)
    # gaps: log 2; minus infinity, held at -20; both exclude the third: 0
    weights = [0.5 * 2, 0.3 * math.exp(-20), 0.2]
    assert target.exp()[0].tolist() == pytest.approx([w / sum(weights) for w in weights], abs=1e-12)


def test_the_second_view_is_the_same_text_without_the_question():
    group = [rollout(0, 0, True, "a"), rollout(0, 1, True, "b")]
    alone = resolved(WithoutQuestion(), Sibling())
    assert alone == WithoutQuestion(Sibling())
    assert alone.texts(group) == ["b", "a"]
    assert alone.question(group[0].prompt) == ""
    assert WithoutQuestion(Reference(share=0.5)).shown([rollout(0, 0, True, solution="1 2 3 4")]) == ["1 2"]
    assert alone.own([rollout(0, 0, True, "a"), rollout(0, 1, True, "a")]) == [
        True,
        True,
    ]  # as the other context hides it
    assert resolved(Default(), Reference()) == Reference()


def test_the_two_teachers_prompts_differ_by_the_question():
    learner, rollouts, _ = world("method=purified_opsd", "method.purified_base=student")
    assert learner.contexts == [Reference(), WithoutQuestion(Reference())]
    wanted_B = torch.ones(len(rollouts), dtype=torch.bool)
    batch, _, _ = batch_of(learner, rollouts, signals_of(rollouts, 1, []), wanted_B)
    decode = learner.policy.tokenizer.decode
    for with_question, without in zip(*batch.teacher_rows, strict=True):
        shown, alone = decode(with_question.prompt_ids), decode(without.prompt_ids)
        assert shown != alone
        assert shown.endswith(alone[alone.index("|") :])


@pytest.mark.parametrize("method", [["method=purified_opsd"], ["method=rlrt", "method.gap=wording"]])
@pytest.mark.parametrize(
    "teacher",
    ["teacher.context=reference_alone", "teacher.context=reference_alone@0.5", "teacher.too_long=shorter_sibling"],
)
def test_two_views_that_could_differ_by_more_than_the_question_are_refused(method, teacher):
    key, value = teacher.split("=")
    with pytest.raises(UserError, match=rf"{key}: method .*{value.split('@')[0]}.*; set {key}=(reference|no_teacher)"):
        settings(*method, teacher)
    settings("method=rlrt", teacher)


def test_the_teachers_own_view_of_the_question_is_a_fourth_one():
    """The question without a text: at step 0 what the student itself predicts, by the teacher's weights."""
    # P_B P_T / P_R on another base: .2 * .6/.3 = .4, .2, .6 * .2/.5 = .24; their sum is .84
    base = logs([0.2, 0.2, 0.6])
    one = term(purified_base="teacher")
    value = one(Distributions(STUDENT, TEACHER, torch.ones(1, dtype=F64), [ALONE, base]))
    t = [0.4 / 0.84, 0.2 / 0.84, 0.24 / 0.84]
    assert float(value) == pytest.approx(
        sum(p * math.log(p / q) for p, q in zip(t, [0.5, 0.3, 0.2], strict=True)), abs=1e-12
    )
    learner, rollouts, _ = world("method=purified_opsd", "method.purified_base=teacher")
    batch, _, _ = batch_of(learner, rollouts, signals_of(rollouts, 1, []), torch.ones(len(rollouts), dtype=torch.bool))
    assert [row.prompt_ids for row in batch.teacher_rows[2]] == [r.prompt_ids for r in rollouts]


def by_hand(learner, rollouts, base: str, alpha: float) -> dict[str, torch.Tensor]:
    """The gradient of the formula, one rollout at a time through the model's plain logits."""
    model, teacher, builder = learner.policy.model, learner.teacher.model, learner.builder
    tokens = sum(len(r.generation.token_ids) for r in rollouts)

    def logp_TV(of, prompt_ids, response):
        ids = torch.tensor([[*prompt_ids, *response]])
        return of(ids).logits[0, len(prompt_ids) - 1 : -1].log_softmax(-1)

    total = torch.zeros(())
    for r in rollouts:
        response = r.generation.token_ids
        student = logp_TV(model, r.prompt_ids, response)
        with torch.no_grad():
            shown = logp_TV(teacher, builder.teacher(r.prompt, r.prompt.solution), response)
            alone = logp_TV(teacher, builder.teacher(r.prompt, r.prompt.solution, ""), response)
            start = student if base == "student" else logp_TV(teacher, r.prompt_ids, response)
            target = (start + (shown - alone).clamp(-20, 20)).log_softmax(-1)
        loss = kl(student, target) if alpha == 1 else kl(target, student)
        total = total + loss.sum() / tokens
    total.backward()
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize(("base", "alpha"), [("student", 0), ("student", 1), ("teacher", 0)])
def test_the_gradient_of_an_update_is_that_of_the_formula(base, alpha):
    values = {"base": base, "alpha": alpha, "gamma": 1, "top_k": 0}
    learner, rollouts, _ = world("method=purified_opsd", *(f"method.purified_{key}={v}" for key, v in values.items()))
    with torch.no_grad():
        for parameter in learner.policy.model.parameters():  # the student has moved away from its frozen teacher
            parameter.mul_(1.02)
    caught = gradient(learner, rollouts)
    learner.policy.model.zero_grad()
    assert close(caught, by_hand(learner, rollouts, base, alpha))
    assert max(float(g.abs().max()) for g in caught.values()) > 1e-3


def test_a_rollout_that_lacks_one_view_is_left_out():
    """The views of half of the rollouts, and those of the other half: the gradients add up, by their shares of the tokens."""

    class Half(WithoutQuestion):
        parity = 0

        def texts(self, rollouts):
            return [t if i % 2 == self.parity else None for i, t in enumerate(super().texts(rollouts))]

    whole, rollouts, _ = world("method=purified_opsd", "method.purified_base=student")
    expected, total = gradient(whole, rollouts), {}
    lengths = [len(r.generation.token_ids) for r in rollouts]
    for parity in (0, 1):
        learner, _, _ = world("method=purified_opsd", "method.purified_base=student")
        half = Half(Reference())
        object.__setattr__(half, "parity", parity)
        learner.contexts = [Reference(), half]
        share = sum(lengths[parity::2]) / sum(lengths)
        for name, value in gradient(learner, rollouts).items():
            total[name] = total.get(name, 0) + share * value
    assert close(total, expected)


# D in two parts


def three_views(**more):
    """Of a correct rollout: P_S = .5 and .2, P_T = .4 and .8, P_R = .25 and .4; a wrong rollout besides."""
    student, teacher = logs([0.5, 0.2], [0.9, 0.5]), logs([0.4, 0.8], [0.3, 0.5])
    given = signals([1.0, 0.0], [0, 0], [2, 2], student, teacher, **more)
    alone = logs([0.25, 0.4], [0.3, 0.5])
    given.teachers.append(TeacherSignal(given.teachers[0].has_B, alone, torch.zeros_like(alone)))
    return given


@pytest.mark.parametrize(
    ("gap", "weights"),
    [
        ("split", [1.25, 0.25]),  # D: .5/.4 and .2/.8
        ("wording", [2.0, 0.5]),  # P_S / P_R: .5/.25 and .2/.4
        ("question", [0.625, 0.5]),  # P_R / P_T: .25/.4 and .4/.8
    ],
)
def test_the_parts_of_the_gap_by_hand(gap, weights):
    result = credit(gap=gap, epsilon_w=1.0, lambda_init=1.0)(ADVANTAGE, three_views())
    assert result.advantage_BT.flatten().tolist() == pytest.approx([*(2 * w for w in weights), -1, -1], abs=1e-12)
    metrics = result.metrics
    wording, question = [math.log(2), math.log(0.5)], [math.log(0.625), math.log(0.5)]
    whole = [a + b for a, b in zip(wording, question, strict=True)]
    assert metrics["rlrt/gap_mean"] == pytest.approx(sum(whole) / 2, abs=1e-12)
    assert metrics["rlrt/gap_wording_mean"] == pytest.approx(0.0, abs=1e-12)
    assert metrics["rlrt/gap_wording_abs_mean"] == pytest.approx(math.log(2), abs=1e-12)
    assert metrics["rlrt/gap_question_mean"] == pytest.approx(sum(question) / 2, abs=1e-12)
    # sum(wording * D) / sum(D^2) = (.6931 * .2231 + .6931 * 1.3863) / (.2231^2 + 1.3863^2) = .5658
    assert metrics["rlrt/gap_wording_share"] == pytest.approx(0.5658, abs=1e-4)


def test_a_rollout_without_the_second_view_keeps_its_advantage():
    given = three_views()
    given.teachers[1].has_B = torch.tensor([False, True])
    result = credit(gap="wording")(ADVANTAGE, given)
    assert result.advantage_BT.flatten().tolist() == [2.0, 2.0, -1.0, -1.0]
    assert "rlrt/gap_wording_share" not in result.metrics


def test_logging_the_parts_changes_no_weight_and_the_parts_add_up_to_d():
    plain, rollouts, _ = world("method=rlrt")
    without = gradient(plain, rollouts)
    learner, _, _ = world("method=rlrt", "method.gap=split")
    caught = gradient(learner, rollouts)
    assert close(caught, without)
    numbers = learn(learner, rollouts, signals_of(rollouts, 1, learner.policy.special_ids), 1e-3).metrics
    parts = numbers["rlrt/gap_wording_mean"] + numbers["rlrt/gap_question_mean"]
    assert parts == pytest.approx(numbers["rlrt/gap_mean"], abs=1e-6)
    assert numbers["rlrt/gap_question_abs_mean"] > 0.01
