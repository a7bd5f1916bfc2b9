"""Benchmarks that run without a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rlrt.errors import UserError
from rlrt.execution.execute import execute
from rlrt.records.jsonlines import JsonLines
from tests.helpers import settings


def test_the_gpu_benchmark_says_when_there_is_no_gpu():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    words, root = [sys.executable, "-m", "benchmarks.gpu"], Path(__file__).parents[1]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 1
    assert done.stderr.strip() == "benchmarks.gpu: expected a CUDA GPU, found none here; run it where there is one."


def test_the_checks_of_a_card_pass_on_the_cpu_and_can_fail():
    from benchmarks.gpu import checks, head, offload

    cpu = torch.device("cpu")
    assert checks.tried("x", lambda: offload.moments_leave(cpu, 1000)).passed
    for check in (checks.head, head.agrees, head.cost):
        assert checks.tried("x", lambda check=check: check(cpu)).passed
    assert [checks.memory(100, measured)[0] for measured in (85, 95, 105, 115)] == [False, True, True, False]
    broken = checks.tried("x", lambda: 1 / 0)
    assert (broken.passed, str(broken)) == (False, "FAIL      x: ZeroDivisionError: division by zero")


def test_an_output_layer_that_rounds_more_than_it_should_does_not_pass(monkeypatch):
    from benchmarks.gpu import head
    from rlrt.model import head as layer

    right = layer.factor
    monkeypatch.setattr(layer, "factor", lambda x, dtype: right(x, dtype) * (1 if dtype == torch.float32 else 1.02))
    passed, said = head.agrees(torch.device("cpu"))
    assert not passed, said


def test_the_first_cards_script_finds_its_files():
    from benchmarks.gpu import throughput

    assert throughput.CONFIG.is_file()
    assert throughput.SMALL_CONFIG.is_file()


def test_the_page_shows_what_the_estimate_says_of_every_model_and_machine():
    """A golden table: a change of the estimate changes docs/cluster.md, where a person sees it."""
    from benchmarks import fits

    page = (Path(__file__).parents[1] / "docs" / "cluster.md").read_text().splitlines()
    missing = [row for row in fits.rows() if row not in page]
    assert not missing, "python -m benchmarks.fits prints what docs/cluster.md must show"


def test_the_page_of_seconds_on_paper_is_what_the_program_prints():
    from benchmarks import throughput
    from rlrt.preflight.forecast.rates import H100

    page = Path(__file__).parents[1] / "docs" / "throughput.md"
    assert page.read_text() == throughput.page(H100), "python -m benchmarks.throughput > docs/throughput.md"
    lines = page.read_text().splitlines()
    assert sum(line.startswith(("| 0.6B |", "| 1.7B |", "| 4B |", "| 8B |")) for line in lines) == 2 * 4 * 3
    assert "**By assumed rates of an H100, never measured.**" in page.read_text()


def test_the_page_says_what_limits_a_step():
    from benchmarks import limits

    text = (Path(__file__).parents[1] / "docs" / "benchmarks.md").read_text()
    assert limits.page().strip() in text, "python -m benchmarks.limits"
    for _, work in limits.cells():  # the parts of a step are the whole of it
        assert sum(limits.parts(work).values()) == pytest.approx(limits.forecast(work).total)
        assert min(limits.parts(work).values()) >= 0


def test_packing_is_measured_on_this_machine():
    from benchmarks.throughput import mask_pair_s, packing_token_s

    assert 1e-11 < mask_pair_s(tokens=2048, times=3) < 1e-6
    assert 1e-9 < packing_token_s(responses=2, tokens=2048, times=3) < 1e-4


def test_rates_come_back_from_seconds_that_they_explain():
    """Seconds made from known rates give those rates; seconds that no positive rates explain give none."""
    from benchmarks.gpu import rates
    from benchmarks.gpu.throughput import FEW, GROUP, PROMPT, PROMPTS
    from benchmarks.throughput import sizes

    one, tokens, linear, causal, layer_s, share, token_s = sizes("Qwen3-1.7B"), 1024, 3e14, 1e14, 2e-4, 0.5, 1e-7

    def passed(before):
        operations, attention, less = rates.equation(one, tokens, before, 0.0, token_s)
        return operations / linear + attention / causal - less

    def decoded(rows):
        return tokens * one.layers * layer_s + rates.read_bytes(one, tokens, rows) / (share * 3.35e12)

    seconds = {
        "scoring": [passed(PROMPT), 99.0, passed(PROMPT)],  # the median, not the mean
        "teacher": [passed(PROMPT + tokens)],
        "rollout": [decoded(PROMPTS * GROUP)],
        FEW: [decoded(GROUP)],
    }
    found = rates.measured_rates(one, tokens, seconds, 3.35e12, token_s)
    wanted = {
        "linear_bf16": linear,
        "causal_bf16": causal,
        "hf_layer_s": layer_s,
        "hf_share": share,
        "packing_token_s": token_s,
    }
    assert found == pytest.approx(wanted, rel=1e-6)
    odd = rates.measured_rates(one, tokens, seconds | {"teacher": [passed(PROMPT) / 2]}, 3.35e12, token_s)
    assert set(odd) == {"hf_layer_s", "hf_share", "packing_token_s"}
    unknown = rates.measured_rates(one, tokens, seconds, None, token_s)
    assert set(unknown) == {*wanted} - {"hf_share"}


def test_vllm_is_measured_beside_a_trainer_sleeping_and_waking_each_time(monkeypatch):
    """The order of calls: what the first card does with vLLM."""
    import argparse

    from benchmarks.gpu import throughput
    from rlrt.types import Generation

    calls = []

    class Recorder:
        def __init__(self, **keys):
            assert keys["release_memory"]

        def expect(self, longest, share):
            calls.append(("expect", longest, share))

        def load(self, model, stop_ids, version):
            calls.append(("load", version))

        def release(self):
            calls.append("release")

        def close(self):
            calls.append("close")

        def sample(self, prompts, seeds):
            calls.append(len(prompts))
            for i, row in enumerate(seeds):
                for g in range(len(row)):
                    yield i, g, Generation([1] * 4, torch.zeros(4), torch.zeros(4), True)

    monkeypatch.setattr(throughput, "VllmEngine", Recorder)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (60 * 10**9, 80 * 10**9))
    model = throughput.build(Path(__file__).parents[1] / "rlrt" / "embedded" / "config.json", torch.device("cpu"))
    table = throughput.Table("a card", 100, (1e9, 1e9))
    throughput.rollouts_by_vllm(table, model, [[1]] * 32, [list(range(8))] * 32, argparse.Namespace(tokens=4, steps=2))
    share = (60 - 4) / 80
    again = ["release", ("load", 1), 32, "release", ("load", 2), 32]
    assert calls == [("expect", throughput.PROMPT + 4, share), ("load", 0), 1, *again, "close"]
    assert table.text.count("rollout, vllm") == 2
    assert table.notes.count("vLLM slept in") == 2


def test_the_simulated_races_decide_as_a_race_does():
    import numpy

    from benchmarks import races
    from rlrt.statistics import narrowed, verdict

    drawn = numpy.random.default_rng(5).normal(0.02, races.SPREAD, (40, races.MOST))
    names = {1: "better", -1: "worse", 0: "equivalent", 9: "open"}
    for row, what, spent in zip(drawn, *races.decided(drawn, 0.05), strict=True):
        interval, said, n = (-numpy.inf, numpy.inf), "open", 0
        while said == "open" and n < races.MOST:
            n += 1
            interval = narrowed(interval, [float(v) for v in row[:n]], 0.05, races.SCALE)
            said = verdict(*interval, races.MARGIN)
        assert (names[int(what)], int(spent)) == (said, n)
    table = races.power(500)
    assert [float(cell) for cell in table[-1].split("|")[2:4]] == [1.0, 0.0]  # .08 is always found
    assert len(races.coverage(50)) == 2 + len(races.LAWS)


def test_rows_of_a_study_and_its_tables(tmp_path):
    from benchmarks import study

    for seed in (0, 1):
        words = ("train.steps=3", "train.eval_every=2", "train.prompts_per_step=2", "eval.prompts=4", "tracking=none")
        made = settings("method=grpo", f"seed={seed}", *words, "teacher.probe_prompts=0")
        execute(made, tmp_path / f"run{seed}", lambda line: None, lambda: False)
    lines = list(study.rows(tmp_path, None))
    first = json.loads(lines[0])
    assert [json.loads(line)["seed"] for line in lines] == [0, 1]
    assert list(first["evaluations"]) == ["0", "2", "3"]
    assert "eval/pass_at_8" in first["evaluations"]["0"].keys() & first["evaluations"]["3"].keys()
    assert set(first["evaluations"]["2"]) == {"eval/avg_at_8", "eval/distinct_families"}
    rewards = [r["reward/mean"] for r in JsonLines(tmp_path / "run0" / "metrics.jsonl").read() if "reward/mean" in r]
    assert first["reward"] == [round(sum(rewards) / 3, 4)]
    (tmp_path / "known.jsonl").write_text(lines[0] + "\n")
    assert list(study.rows(tmp_path, tmp_path / "known.jsonl")) == lines[1:]


def test_a_studys_table_by_hand():
    from benchmarks import study

    def row(label, seed, value):
        return {"label": label, "seed": seed, "evaluations": {"0": {"m": 0.0}, "100": {"m": value}}}

    found = [row("a", 0, 0.1), row("a", 1, 0.3), row("b", 0, 0.2), row("b", 1, 0.6), row("b", 7, 0.4)]
    # gaps .1 and .3: standard error .1, t(1) = 12.706; means: .2 with standard error .1; .4 with .2/sqrt(3), t(2) = 4.303
    assert study.table(found, "a", "m").splitlines()[2:] == [
        "| a | 2 | 0.200 ± 1.271 |  | 2 |",
        "| b | 3 | 0.400 ± 0.497 | +0.200 ± 1.271 | 2 |",
    ]
    with pytest.raises(UserError, match=r"--baseline: expected one of a, b, got c\."):
        study.table(found, "c", "m")
    with pytest.raises(UserError, match=r"--metric: .* got n, which no run has\."):
        study.table(found, "a", "n")
