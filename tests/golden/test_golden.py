from __future__ import annotations

import json
import math

import pytest

from tests.golden.world import HERE, NAMES, loss_values, machine, main, three_updates
from tests.helpers import METHODS


@pytest.mark.parametrize("method", METHODS)
def test_three_updates_are_as_recorded(method):
    """Exact on the machine that recorded them, 1e-5 elsewhere."""
    golden = json.loads((HERE / f"{method}.json").read_text())
    measured = three_updates(method)
    assert len(measured) == 3
    for step, (now, then) in enumerate(zip(measured, golden["steps"], strict=True), 1):
        assert now.keys() == then.keys()
        for name, value in then.items():
            if golden["machine"] == machine():
                assert now[name] == value, f"step {step} {name}"
            else:
                assert math.isclose(now[name], value, rel_tol=1e-5, abs_tol=1e-5), f"step {step} {name}"


def test_losses_in_double_precision():
    golden = json.loads((HERE / "losses.json").read_text())
    measured = loss_values()
    assert measured.keys() == golden.keys()
    for name, values in golden.items():
        assert measured[name] == pytest.approx(values, rel=1e-12, abs=1e-12), name


def test_the_recorded_losses_agree_with_plain_python():
    """An independent reading of the formulas, without torch: Jensen-Shannon at a = .25 and the clipped loss, row 1."""
    golden = json.loads((HERE / "losses.json").read_text())

    def softmax(logits):
        total = math.fsum(math.exp(v) for v in logits)
        return [math.exp(v) / total for v in logits]

    s = softmax([1.7 * math.sin(v) for v in range(4)])
    t = softmax([1.3 * math.cos(v + 0.5) for v in range(4)])
    a = 0.25
    m = [(1 - a) * p + a * q for p, q in zip(s, t, strict=True)]
    expected = a * math.fsum(q * math.log(q / r) for q, r in zip(t, m, strict=True))
    expected += (1 - a) * math.fsum(p * math.log(p / r) for p, r in zip(s, m, strict=True))
    assert golden["divergence_0.25"][0] == pytest.approx(expected, abs=1e-12)
    for i in range(4):
        ratio, advantage = s[i] / t[i], math.cos(i)
        loss = -min(ratio * advantage, min(max(ratio, 0.8), 1.28) * advantage)
        assert golden["clipped_loss"][i] == pytest.approx(loss, abs=1e-12)
    assert golden["entropy"][0] == pytest.approx(-math.fsum(p * math.log(p) for p in s), abs=1e-12)


def test_recording_one_golden_run_writes_one(tmp_path, capsys):
    main(["grpo"], tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["grpo.json"]
    steps = json.loads((tmp_path / "grpo.json").read_text())["steps"]
    assert steps == three_updates("grpo")
    assert capsys.readouterr().out == f"{tmp_path / 'grpo.json'}\n"


@pytest.mark.parametrize("words", [[], ["rlrtt"]])
def test_nothing_is_recorded_without_a_known_name(tmp_path, capsys, words):
    with pytest.raises(SystemExit) as end:
        main(words, tmp_path)
    assert end.value.code == 2
    assert not list(tmp_path.iterdir())
    assert "NAME" in capsys.readouterr().err


def test_every_golden_file_has_a_name():
    assert sorted(p.stem for p in HERE.glob("*.json")) == sorted(NAMES)
