"""Seconds of a step on paper: worked by hand for one small case, laws, and the sums that were made before the program."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from benchmarks.throughput import MODELS, work_of
from rlrt.errors import UserError
from rlrt.execution.memory.estimate import Layout, Lengths, estimate
from rlrt.execution.memory.sizes import Sizes
from rlrt.preflight.forecast.decoding import longest
from rlrt.preflight.forecast.rates import H100, MEANINGS, RATES, Rate, Rates, rates_file, rates_of, read_rates
from rlrt.preflight.forecast.step import PHASES, evaluations, forecast, saves
from rlrt.preflight.forecast.work import Work
from tests.helpers import METHODS, settings

SIZES = Sizes(
    weights=1300,
    trained=1300,
    matrices=1000,
    layers=2,
    layer=500,
    head=200,
    tied=True,
    largest=200,
    hidden=4,
    inner=8,
    queries=8,
    keys=4,
    heads=2,
    key_heads=1,
    head_size=8,
    vocabulary=50,
    adapted=False,
    packed=True,
    quick=True,
)
ROUND = {
    "bandwidth": 1e6,
    "linear_bf16": 1e6,
    "linear_float32": 5e5,
    "masked_float32": 5e4,
    "causal_bf16": 2e5,
    "causal_float32": 1e5,
    "vllm_share": 0.5,
    "vllm_token_s": 1e-3,
    "hf_share": 0.5,
    "hf_layer_s": 1e-3,
    "packing_token_s": 1e-6,
    "mask_pair_s": 1e-6,
    "disk": 1e3,
}
SMALL = (
    "train.prompts_per_step=4",
    "train.rollouts_per_prompt=8",
    "train.minibatches=2",
    "engine.max_new_tokens=20",
    "engine.max_rows=8",
    "eval.samples_per_prompt=4",
    "eval.prompts=3",
)


def round_rates() -> Rates:
    """Rates that are easy to divide by."""
    return dataclasses.replace(H100, **{name: Rate(value) for name, value in ROUND.items()})


def small(*overrides, device_bytes=10**12, sizes=SIZES, cards=1, **more):
    """4 prompts of 6 tokens, 8 responses of 10 to each, on a card in bfloat16."""
    made = settings(*SMALL, *overrides)
    layout = Layout("cuda", cards, False, device_bytes)
    given = {"sizes": sizes, "rates": round_rates(), "response": 10.0, "evaluated": 3, **more}
    return Work(settings=dataclasses.replace(made, dtype="bfloat16"), lengths=Lengths(6, 100), layout=layout, **given)


def test_the_small_case_by_hand():
    step = forecast(small("method=rlrt"))
    # 32 rollouts of 10 tokens and 4 prompts of 6: 344 tokens; 32 x 10 x (6 + 10 / 2) and 4 x 6 x 6 / 2 pairs
    student = 2 * 1200 * 344 / 1e6 + 4 * 8 * 2 * 3520 / 2e5 + 4 * 8 * 2 * 72 / 2e5 + 344e-6
    assert student == pytest.approx(0.8256 + 1.1264 + 0.02304 + 0.000344)
    assert step.scoring == pytest.approx(student)
    # 35 % are taught: 11.2 rows of 10 behind 5.6 prompts of 6 + 10 + 64 tokens: 112 x 85 and 5.6 x 80 x 80 / 2 pairs
    assert step.teacher == pytest.approx(2 * 1200 * 560 / 1e6 + 64 * 9520 / 2e5 + 64 * 17920 / 2e5 + 560e-6)
    # 70 % are trained on: 240.8 tokens, layers 1 + 2 times, the output layer 2 + 2, attention 1 + 2.5
    update = 2 * (3 * 1000 + 4 * 200) * 240.8 / 1e6 + 3.5 * (64 * 2464 / 2e5 + 64 * 50.4 / 2e5) + 240.8e-6
    assert update == pytest.approx(4.6464488)
    assert step.update == pytest.approx(update)
    # 4 waves of 8 rows, each as long as may be: 20 tokens of 2 layers' launches and 1,200 weights of 2 bytes; caches of 32
    # bytes a token, 10 tokens behind 6 and on average 5
    assert step.rollout == pytest.approx(4 * 20 * (2e-3 + 2400 / 5e5) + 32 * 32 * 10 * 11 / 5e5)
    # 3 problems greedily, the longest 10 x (1 + 1/2 + 1/3) tokens; then 2 waves of 2 groups of 4
    greedy = 10 * (1 + 1 / 2 + 1 / 3) * 0.0068 + 3 * 32 * 110 / 5e5
    assert step.evaluation == pytest.approx(greedy + 2 * 20 * 0.0068 + 12 * 32 * 110 / 5e5)
    # two steps' 8 prompts: twice the rollouts and the student's pass of a step; 2 answers to each of 16 teacher's prompts;
    # all 64 rows of 10 tokens behind 16 prompts of 80
    sampled = 2 * step.rollout + 4 * 20 * 0.0068 + 32 * 32 * 110 / 5e5
    gaps = 2 * student + 2 * 1200 * 1920 / 1e6 + 64 * 64 * 10 * 85 / 2e5 + 64 * 16 * 80 * 80 / 2 / 2e5 + 1920e-6
    assert step.probe == pytest.approx(sampled + gaps)
    assert forecast(small("method=rlrt", "teacher.probe_prompts=0")).probe == forecast(small("method=grpo")).probe == 0
    assert step.checkpoint == pytest.approx(4 * (1300 + 2 * 1300) / 1e3)
    assert (step.rows, step.fits, step.ahead) == (8, True, False)
    assert step.total == pytest.approx(step.rollout + step.scoring + step.teacher + step.update)


def test_vllm_decodes_as_many_rows_as_its_share_of_the_card_holds():
    """0.4 of 10,270 bytes less 1,300 weights of 2 bytes are 1,508: 4 rows of 32 x (6 + 5) bytes."""
    step = forecast(small("engine=vllm", "engine.gpu_memory_utilization=0.4", device_bytes=10270))
    assert step.rows == 4
    assert step.rollout == pytest.approx(32 * 10 / 4 * (1e-3 + 2400 / 5e5) + 32 * 32 * 110 / 5e5)
    assert not forecast(small("engine=vllm", "engine.gpu_memory_utilization=0.4", device_bytes=6500)).fits
    roomy = forecast(small("engine=vllm", "engine.gpu_memory_utilization=0.4", "engine.max_rows=64"))
    assert roomy.rows == 32  # the last row alone takes 20 tokens, all together 10 on average
    assert roomy.rollout == pytest.approx(20 * (1e-3 + 2400 / 5e5) + 32 * 32 * 110 / 5e5)


def test_hf_decodes_as_many_rows_as_the_memory_estimate_lets_it():
    work = small("method=grpo", "engine.max_rows=512")
    two_groups = small("method=grpo", "engine.max_rows=16")
    room = estimate(SIZES, two_groups.settings, work.lengths, work.layout).total("rollout")

    def rows(device_bytes):
        return forecast(small("method=grpo", "engine.max_rows=512", device_bytes=device_bytes)).rows

    assert [rows(10**12), rows(room), rows(room - 1)] == [32, 16, 8]
    assert forecast(small("method=grpo", device_bytes=room)).fits
    assert not forecast(small("method=grpo", device_bytes=room // 2)).fits


@pytest.mark.parametrize("engine", ["hf", "vllm"])
@pytest.mark.parametrize("model", MODELS)
def test_twice_the_prompts_are_twice_the_seconds_of_each_phase(model, engine):
    """240 prompts of 8 are whole waves of 8, 16 and 24 rows."""

    def with_prompts(count):
        work = work_of(model, 1, engine, 4096)
        train = dataclasses.replace(work.settings.train, prompts_per_step=count)
        return forecast(dataclasses.replace(work, settings=dataclasses.replace(work.settings, train=train)))

    before, after = with_prompts(240), with_prompts(480)
    for phase in PHASES:
        assert getattr(after, phase) == pytest.approx(2 * getattr(before, phase), rel=1e-6), phase
        assert getattr(before, phase) > 0
    assert after.evaluation == before.evaluation


@pytest.mark.parametrize("engine", ["hf", "vllm"])
@pytest.mark.parametrize("model", ["Qwen3-0.6B", "Qwen3-4B"])
def test_more_cards_are_never_slower(model, engine):
    one = work_of(model, 1, engine, 4096)
    steps = [forecast(one.on_cards(n, n > 1)) for n in (1, 2, 3, 4, 8, 16)]
    for phase in (*PHASES, "evaluation"):
        values = [getattr(step, phase) for step in steps]
        assert values == sorted(values, reverse=True), phase
        assert values[-1] < values[0], phase


@pytest.mark.parametrize("engine", ["hf", "vllm"])
def test_longer_responses_are_never_quicker(engine):
    one = work_of("Qwen3-1.7B", 8, engine, 256)
    steps = [forecast(one.with_response(float(n))) for n in (64, 256, 1000, 4096, 9000, 20480)]
    for phase in (*PHASES, "evaluation", "total"):
        values = [getattr(step, phase) for step in steps]
        assert values == sorted(values), phase
        assert values[-1] > values[0], phase


def test_the_longest_of_some_responses():
    work = small()
    assert [longest(work, n) for n in (1, 2, 100)] == [10, 15, 20]


ON_PAPER = {
    ("Qwen3-1.7B", 1, 4096): {"rollout": 1330, "learning": 361},
    ("Qwen3-1.7B", 1, 20480): {"rollout": 29000, "learning": 2830},
    ("Qwen3-8B", 8, 4096): {"rollout": 272, "learning": 185},
    ("Qwen3-8B", 8, 20480): {"rollout": 6070, "learning": 1250},
}
"""Seconds that were worked out by hand before there was a program: with vLLM, and with a flash kernel on rows as they lie
beside matrices at 400e12 operations a second."""


@pytest.mark.parametrize("case", ON_PAPER, ids=str)
def test_the_sums_made_before_the_program(case):
    model, cards, mean = case
    step = forecast(work_of(model, cards, "vllm", mean, dataclasses.replace(H100, linear_bf16=Rate(400e12))))
    found = {"rollout": step.rollout, "learning": step.scoring + step.teacher + step.update}
    for phase, seconds in ON_PAPER[case].items():
        assert seconds / 1.5 < found[phase] < 1.5 * seconds, phase


@pytest.mark.parametrize("mean", [4096, 20480])
def test_the_sums_for_the_own_engine(mean):
    """1.5 to 3.5 hours and 8 to 12 on paper; 8B on 8 cards of 80 GB has no room for a copy of the weights and a row."""
    low, high = {4096: (1.5, 3.5), 20480: (8, 12)}[mean]
    assert low < forecast(work_of("Qwen3-1.7B", 1, "hf", mean)).rollout / 3600 < 1.5 * high
    assert not forecast(work_of("Qwen3-8B", 8, "hf", mean)).fits


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_forecast(method):
    work = small(f"method={method}", *(["train.rollouts_per_prompt=1"] if method == "sft" else []))
    step = forecast(work)
    assert (step.teacher > 0) == work.settings.method.needs_teacher
    assert (step.rollout > 0) == (method != "sft")
    assert step.update > 0
    assert math.isfinite(step.total)


def test_a_supervised_start_samples_nothing_and_learns_from_everything():
    """GRPO trains on .7 of its rollouts on average; an engine with weights of its own has no ratio to correct here."""
    rest = ("train.rollouts_per_prompt=1", "train.minibatches=1")
    taught = forecast(small("method=sft", "engine=vllm", *rest))
    sampled = forecast(small("method=grpo", "train.minibatches=1", "train.token_budget=16", "engine=vllm"))
    assert (taught.rollout, taught.scoring) == (0.0, 0.0)
    assert sampled.scoring > 0
    packed = forecast(small("method=sft", *rest)), forecast(small("method=sft", "train.kl_coef=0.1", *rest))
    assert packed[0].update == packed[1].update  # a penalty runs all rollouts too


def test_what_a_step_scores():
    """One mini-batch of several micro-batches scores the taught alone; a KL penalty runs a reference, and trains all."""
    one = ("train.minibatches=1", "train.token_budget=16", "method=rlrt")
    every = forecast(small("method=rlrt"))
    assert forecast(small(*one)).scoring == pytest.approx(0.35 * every.scoring)
    assert forecast(small(*one[:2], "method=grpo")).scoring == 0
    assert forecast(small("train.minibatches=1", "train.token_budget=4096", "method=rlrt")).scoring == 0
    assert forecast(small(*one, "engine=vllm")).scoring == pytest.approx(every.scoring)
    assert forecast(small("teacher.weights=live", "method=rlrt")).scoring == pytest.approx(2 * every.scoring)
    sampled = "train.old_logp=sampler"  # then only the student's side of D is scored, and what a credit reads besides
    assert forecast(small(sampled, "method=grpo", "engine=vllm")).scoring == 0
    assert forecast(small(sampled, "method=rlrt", "engine=vllm")).scoring == pytest.approx(0.35 * every.scoring)
    assert forecast(small(sampled, "method=dasd", "engine=vllm")).scoring == pytest.approx(every.scoring)
    assert forecast(small(sampled, "method=rlrt", "teacher.weights=live")).scoring == pytest.approx(every.scoring)
    with_kl = forecast(small("method=rlrt", "train.kl_coef=0.1"))
    assert with_kl.scoring == pytest.approx(2 * every.scoring)
    assert with_kl.update == pytest.approx(every.update / 0.7)


def test_refills_adapters_and_recomputation():
    plain = forecast(small("method=grpo"))
    refilled = forecast(small("method=grpo", "train.max_refills=2"))
    assert refilled.rollout == pytest.approx((1 + 0.3 + 0.09) * plain.rollout)
    assert refilled.update == pytest.approx(plain.update * 0.973 / 0.7)
    adapted = forecast(small("method=grpo", sizes=dataclasses.replace(SIZES, adapted=True, trained=50)))
    assert adapted.checkpoint == pytest.approx(4 * (1300 + 2 * 50) / 1e3)
    assert plain.update - adapted.update == pytest.approx(2 * 1200 * 240.8 / 1e6)  # no gradients of the weights
    again = forecast(small("method=grpo", "model.gradient_checkpointing=true"))
    more = 2 * 1000 * 240.8 / 1e6 + 64 * 2464 / 2e5 + 64 * 50.4 / 2e5
    assert again.update - plain.update == pytest.approx(more)


def test_float32_and_other_models_take_other_rates():
    work = small("method=grpo")
    single = dataclasses.replace(work, settings=dataclasses.replace(work.settings, dtype="float32"))
    # 32 x 10 x 16 pairs under masks, and a core that makes these; heads that no flash kernel takes are counted the same way
    masked = 64 * 5120 / 5e4 + 5120e-6 + 344e-6
    assert forecast(single).scoring == pytest.approx(2 * 1200 * 344 / 5e5 + masked + 64 * 72 / 1e5)
    odd = forecast(small("method=grpo", sizes=dataclasses.replace(SIZES, head_size=12)))
    assert odd.scoring == pytest.approx(2 * 1200 * 344 / 1e6 + masked + 64 * 72 / 2e5)
    other = forecast(small("method=grpo", sizes=dataclasses.replace(SIZES, packed=False)))
    assert other.scoring == pytest.approx(2 * 1200 * 32 * 16 / 1e6 + 64 * 32 * 16 * 16 / 2 / 2e5)


def test_the_cards_of_a_runs_own_server_are_read_together():
    """Twice the bandwidth: twice as quick but for the scheduler; and room for more rows, the weights being there once."""
    words = ("engine=vllm_server", "engine.start=true", "method=rlrt")
    one, two = (forecast(small(*words, f"engine.gpus={n}", device_bytes=10270, cards=2)) for n in (1, 2))
    assert two.rollout < one.rollout
    assert two.rows >= one.rows


def test_a_server_samples_beside_the_update_where_it_may():
    server = ("engine=vllm_server", "method=rlrt")
    waits = forecast(small(*server, device_bytes=10270, cards=2))
    ahead = forecast(small(*server, "train.sample_ahead=true", device_bytes=10270, cards=2))
    assert ahead.total == max(ahead.rollout, ahead.scoring + ahead.teacher + ahead.update)
    assert ahead.total < waits.total
    assert (
        waits.rollout == forecast(small(*server, device_bytes=10270, cards=1)).rollout
    )  # the server's card, not the trainer's


@pytest.mark.parametrize(("steps", "every", "count"), [(150, 50, 4), (100, 10, 11), (150, 0, 2), (7, 3, 4)])
def test_evaluations_of_a_run(steps, every, count):
    assert evaluations(settings(f"train.steps={steps}", f"train.eval_every={every}").train) == count


@pytest.mark.parametrize(
    ("every", "minutes", "step_s", "count"),
    [(10, 30, 1, 10), (10, 30, 3600, 100), (0, 0, 3600, 1), (0, 1, 25, 34), (30, 0, 1, 4)],
)
def test_checkpoints_of_a_run(every, minutes, step_s, count):
    words = ("train.steps=100", f"train.save_every={every}", f"train.save_minutes={minutes}")
    assert saves(settings(*words).train, step_s) == count


def test_the_table_says_where_each_rate_comes_from():
    for rates in RATES.values():
        assert set(rates.named()) == set(MEANINGS)
        for name, rate in rates.named().items():
            assert rate.source in ("assumed", "data sheet") or rate.source.startswith("measured by python -m "), name
        measured = " 4 of 6 measured and the others assumed" if rates.card == "H200" else ""
        said = f"rates of an H200,{measured}" if measured else f"assumed rates of an {rates.card}, never measured"
        assert rates.source() == said
    assert rates_of("NVIDIA H200") is RATES["H200"]
    assert rates_of("NVIDIA GeForce RTX 4090") is None


def test_a_file_of_measured_rates(tmp_path):
    file = tmp_path / "rates.json"
    content = rates_file("NVIDIA H100 80GB HBM3", {"causal_bf16": 5e13}, "python -m benchmarks.gpu", "2026-12-01")
    file.write_text(json.dumps(content))
    rates = read_rates(file)
    assert rates.causal_bf16 == Rate(5e13, "measured by python -m benchmarks.gpu on 2026-12-01")
    assert (rates.card, rates.linear_bf16) == ("H100", H100.linear_bf16)
    assert rates.source() == "rates of an H100, 1 of 6 measured and the others assumed"
    work = work_of("Qwen3-1.7B", 1, "vllm", 4096)
    assert forecast(dataclasses.replace(work, rates=rates)).scoring > forecast(work).scoring


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "expected the file that"),
        ('{"card": "H100"}', "expected the file that"),
        ('{"card": "H100", "rates": {"linear_bf61": {"value": 1, "source": "x"}}}', "Did you mean 'linear_bf16'"),
        ('{"card": "H100", "rates": {"linear_bf16": {"value": 0, "source": "x"}}}', "expected a number above 0"),
        (
            '{"card": "B300", "rates": {"linear_bf16": {"value": 1, "source": "x"}}}',
            "lacks memory .bytes. and bandwidth",
        ),
    ],
)
def test_a_file_that_is_none_is_refused(content, says, tmp_path):
    (tmp_path / "rates.json").write_text(content)
    with pytest.raises(UserError, match=says):
        read_rates(tmp_path / "rates.json")
