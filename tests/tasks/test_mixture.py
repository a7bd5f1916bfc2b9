"""Several data sets as one: problems, grades and messages of each source, shares of a step, metrics by source."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from rlrt.config.rerun import remade
from rlrt.errors import UserError
from rlrt.execution.data import check_data, drop_long_prompts, prepare_task
from rlrt.execution.execute import execute
from rlrt.execution.parts import parts_of
from rlrt.records.identity import identity
from rlrt.sampling.mixing import numbers_of
from rlrt.sampling.sampler import refill_prompts, step_prompts
from tests.helpers import settings
from tests.hub import jsonl


def rows(*questions, answer="1"):
    return [{"prompt": q, "answer": answer} for q in questions]


def mixture(tmp_path, more=(), **sources):
    """Settings of data=mixture whose sources are tables of these rows."""
    overrides = ["data=mixture"]
    for name, table in sources.items():
        file = jsonl(tmp_path / f"{name}.jsonl", table)
        overrides += [f"+data@data.sources.{name}=file", f"data.sources.{name}.path={file}"]
    return settings(*overrides, *more)


def prepared(tmp_path, more=(), **sources):
    data = mixture(tmp_path, more, **sources).data
    prepare_task(data)
    return data


def test_problems_of_all_sources_under_ids_of_their_own(tmp_path):
    a, b = rows(*(f"a{n}" for n in range(10))), rows(*(f"b{n}" for n in range(20)))
    data = prepared(tmp_path, a=a, b=b)
    assert Counter(p.source for p in data.train) == {"a": 9, "b": 18}
    assert Counter(p.source for p in data.heldout) == {"a": 1, "b": 2}
    assert all(p.id.startswith(f"{p.source}/") and p.text.startswith(p.source) for p in data.train)
    assert data.shares is None


def test_each_source_grades_its_own_in_order(tmp_path):
    a, b = rows(*(f"a{n}" for n in range(5)), answer="1"), rows(*(f"b{n}" for n in range(5)), answer="0.5")
    more = ["+data@data.sources.c=countdown", "data.sources.b.verifier=math", "data.sources.b.verifier_workers=1"]
    data = prepared(tmp_path, more, a=a, b=b)
    by_source = {p.source: p for p in data.train}
    solved = next(p for p in data.train if p.source == "c")
    pairs = [
        (by_source["b"], "\\boxed{\\frac{1}{2}}"),
        (by_source["a"], "\\boxed{1}"),
        (by_source["b"], "\\boxed{1}"),
        (solved, solved.solution),
        (by_source["a"], "\\boxed{1.0}"),
    ]
    try:
        assert [g.correct for g in data.start_grading(pairs)()] == [True, True, False, True, False]
        assert data.grade(*pairs[0]).correct
        assert data.canonical(by_source["a"], " x y") == "xy"
    finally:
        data.close()


def test_no_source_trains_on_what_another_holds_out_and_none_twice(tmp_path):
    held = {
        name: jsonl(tmp_path / f"held_{name}.jsonl", rows(*q)) for name, q in (("a", ["a0"]), ("b", ["Shared test?"]))
    }
    more = [f"data.sources.{name}.heldout_path={file}" for name, file in held.items()]
    data = prepared(tmp_path, more, a=rows("a1", "a2", "shared test", "Both?"), b=rows("b1", "A0", "both", "b3"))
    assert [p.text for p in data.heldout] == ["a0", "Shared test?"]
    assert [p.text for p in data.train] == ["a1", "a2", "Both?", "b1", "b3"]
    assert data.report() == (
        "between them: 1 x question that another source has too (for example 'both' of b), 2 x training question that is "
        "nearly one that another source holds out (for example 'shared test' of a)"
    )


def test_what_the_sources_drop_is_said_by_source(tmp_path, caplog):
    a = [*rows("a1", "a2", "a3"), {"prompt": "a4"}, {"prompt": "long " * 9, "answer": "1"}]
    data = prepared(tmp_path, ["data.sources.a.max_prompt_tokens=20"], a=a, b=[*rows("b1", "b2", "b2", "x " * 30)])
    drop_long_prompts(data, Letters())
    assert "a: 1 x no answer (for example line 4 of " in caplog.text
    assert "; b: 1 x repeated question; between them: 1 x prompt over 20 tokens; " in caplog.text
    assert any(p.text.startswith("x x") for p in [*data.train, *data.heldout])  # the other source's limit is its own


class Letters:
    """A prompt's tokens are its letters."""

    def student(self, prompt):
        return list(prompt.text)


WEIGHTS = {"a": 0.7, "b": 0.2, "c": 0.1}


@pytest.mark.parametrize("count", [1, 3, 8, 16])
@pytest.mark.parametrize("shares", [WEIGHTS, {"a": 1.0}, {"a": 0.5, "b": 0.5}, {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}])
def test_numbers_of_a_step_are_the_shares_rounded_and_right_in_the_mean(count, shares):
    steps = 2000
    drawn = [dict(numbers_of(shares, count, 0, step)) for step in range(steps)]
    assert all(sum(numbers.values()) == count for numbers in drawn)
    for name, share in shares.items():
        values = [numbers[name] for numbers in drawn]
        assert all(abs(value - share * count) < 1 for value in values)
        assert abs(sum(values) / steps - share * count) < 0.05


def test_a_step_takes_its_shares_and_no_prompt_twice(tmp_path):
    sources = {name: rows(*(f"{name}{n}" for n in range(30))) for name in "abc"}
    data = prepared(tmp_path, ["data.weights={a: 7, b: 2, c: 1}", "train.prompts_per_step=10"], **sources)
    assert data.shares == {"a": 0.7, "b": 0.2, "c": 0.1}
    seen = Counter()
    for step in range(1, 40):
        chosen = step_prompts(data.train, 0, step, 10, data.shares)
        assert Counter(p.source for p in chosen) == {"a": 7, "b": 2, "c": 1}
        assert len({p.id for p in chosen}) == 10
        assert chosen == step_prompts(data.train, 0, step, 10, data.shares)
        seen.update(p.id for p in chosen)
    assert len(seen) == len(data.train)  # every problem's turn comes
    assert step_prompts(data.train, 1, 1, 10, data.shares) != step_prompts(data.train, 0, 1, 10, data.shares)
    taken = {p.id for p in step_prompts(data.train, 0, 1, 10, data.shares)}
    fresh = refill_prompts(data.train, 0, 1, 1, 10, taken, data.shares)
    assert Counter(p.source for p in fresh) == {"a": 7, "b": 2, "c": 1}
    assert not taken & {p.id for p in fresh}


def test_a_source_with_too_few_problems_is_refused(tmp_path):
    made = mixture(
        tmp_path,
        ["data.weights={a: 9, b: 1}", "train.prompts_per_step=10"],
        a=rows("a1", "a2", "a3"),
        b=rows(*(f"b{n}" for n in range(20))),
    )
    parts = parts_of(made)
    parts.task.prepare()
    with pytest.raises(
        UserError, match=r"^data\.weights: a step of train\.prompts_per_step=10 takes up to 9 prompts of a, which"
    ):
        check_data(made, parts)


@pytest.mark.parametrize(
    ("weights", "share"),
    [("{a: 1, b: 1e-300}", None), ("{a: 1, b: 5e-324}", None), ("{a: 1e9, b: 1}", None), ("{a: 1e308, b: 1e308}", 0.5)],
)
def test_weights_of_any_size_are_shares_or_are_refused(tmp_path, weights, share):
    a, b = (rows(*(f"{name}{n}" for n in range(20))) for name in "ab")
    more = [f"data.weights={weights}", "train.prompts_per_step=4"]
    if share is None:
        with pytest.raises(
            UserError, match=r"^data\.weights: expected shares of at least 1e-06, got .* for b, of which no step"
        ):
            mixture(tmp_path, more, a=a, b=b)
        return
    data = prepared(tmp_path, more, a=a, b=b)
    assert data.shares == {"a": share, "b": share}
    assert Counter(p.source for p in step_prompts(data.train, 0, 1, 4, data.shares)) == {"a": 2, "b": 2}


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ([], r"^data\.sources: expected at least one data set, got none; add \+data@data\.sources\.NAME=gsm8k"),
        (["+data@data.sources.a=countdown", "data.weights={b: 1}"], r"^data\.weights: there is no source 'b'\. Valid: a"),
        (["+data@data.sources.a=countdown", "data.weights={}"], r"^data\.weights: expected a weight for every source"),
        (["+data@data.sources.a=countdown", "data.weights={a: -1}"], r"^data\.weights: expected a number above 0 for a"),
        (["+data@data.sources.a=countdown", "data.weights={a: x}"], r"^data\.weights: expected "),
        (["+data@data.sources.mean=countdown"], r"^data\.sources: expected a name of letters, digits, - and _ \(not mean\)"),
        (["+data@data.sources.a-=countdown", "+data@data.sources._b=countdown"], r"^data\.sources: expected a name of .*'_b'"),
        (["+data.sources.a=3"], r"^data\.sources\.a: expected a section of keys"),
        (["+data.sources.a={numbers: 3}"], r"^data\.sources\.a\._target_: this section must name its class"),
        (["+data@data.sources.a=countdown", "+data.sources.a.numbrs=3"], r"^data\.sources\.a\.numbrs: there is no such key"),
        (["+data@data.sources.a=countdown", "data.sources.a.numbers=99"], r"^data\.sources\.a\.numbers: expected a number of"),
        (["+data@data.sources.a=file"], r"^data\.sources\.a\.path: this key has no value"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_sentence(overrides, says):
    with pytest.raises(UserError, match=says) as caught:
        settings("data=mixture", *overrides)
    assert "\n" not in str(caught.value)


def test_a_sources_own_fault_names_the_source(tmp_path):
    with pytest.raises(UserError, match=r"^data\.sources\.b\.answer_field: expected a column 'answer'"):
        prepared(tmp_path, a=rows("a1", "a2"), b=[{"prompt": "b1"}, {"prompt": "b2"}])
    with pytest.raises(UserError, match=r"^data\.sources\.b: every training question is one of another source too"):
        prepared(tmp_path, a=rows("x1", "x2", "x3"), b=rows("X1", "X2", "X3"))


def test_the_hub_data_sets_can_be_sources(tmp_path):
    """Their keys refer to one another inside the section."""
    table = [{"question": f"{n}?", "answer": f"#### {n}"} for n in range(6)]
    jsonl(tmp_path / "train.jsonl", table[:4])
    jsonl(tmp_path / "test.jsonl", table[4:])
    made = settings(
        "data=mixture",
        "+data@data.sources.g=gsm8k",
        f"data.sources.g.path={tmp_path}",
        "data.sources.g.files=train.jsonl",
        "data.sources.g.heldout_files=test.jsonl",
    ).data
    made.prepare()
    assert (len(made.train), len(made.heldout)) == (4, 2)
    assert made.heldout[0].answer == "4"


def test_the_identity_counts_what_the_sources_are(tmp_path):
    a, b = rows("a1", "a2"), rows("b1", "b2")
    one = identity(mixture(tmp_path, a=a, b=b).plain)
    assert one == identity(mixture(tmp_path, a=a, b=b).plain)
    assert one != identity(mixture(tmp_path, ["data.sources.a.verifier=math"], a=a, b=b).plain)
    assert one != identity(mixture(tmp_path, a=a, b=rows("b1", "b3")).plain)


def test_a_run_has_metrics_by_source_and_can_be_made_again(tmp_path):
    tables = {name: rows(*(f"{t}:3 4 5" for t in span)) for name, span in (("a", range(5, 15)), ("b", range(40, 50)))}
    more = [
        "data.weights={a: 1, b: 3}", "method=grpo", "train.steps=1", "train.prompts_per_step=4", "train.rollouts_per_prompt=2",
        "eval.prompts=2", "eval.samples_per_prompt=2", "engine.max_new_tokens=8", "tracking=none",
    ]  # fmt: skip
    made = mixture(tmp_path, more, **tables)
    run = tmp_path / "run"
    assert execute(made, run, lambda line: None, lambda: False)["state"] == "finished"
    record = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert record[1]["rollout/a/share"] == 0.25
    assert record[1]["rollout/b/share"] == 0.75
    mean = 0.25 * record[1]["reward/a/mean"] + 0.75 * record[1]["reward/b/mean"]
    assert record[1]["reward/mean"] == pytest.approx(mean)
    assert record[1]["eval/avg_at_2"] == pytest.approx(
        (record[1]["eval/a/avg_at_2"] + record[1]["eval/b/avg_at_2"]) / 2
    )
    again = settings(*remade(run, ["seed=1"]), "seed=1")
    assert list(again.data.sources) == ["a", "b"]
    assert again.data.weights == {"a": 1.0, "b": 3.0}
    other = settings(*remade(run, ["data=countdown"]), "data=countdown")
    assert type(other.data).__name__ == "Countdown"
