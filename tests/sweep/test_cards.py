"""Which GPUs the jobs of a sweep get, on this machine and on SLURM."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlrt.distributed.cards import see_own_card, visible_cards
from rlrt.errors import UserError
from rlrt.sweep.launchers import LocalLauncher
from tests.forked import forked
from tests.helpers import ONE_STEP


def local(n_jobs=None, tasks=1, gpus=None):
    return LocalLauncher(n_jobs=n_jobs, threads_per_job=None, nodes=1, tasks_per_node=tasks, gpus_per_node=gpus)


@pytest.fixture
def four(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")


def test_jobs_at_a_time_are_as_many_as_the_cards_serve(four):
    assert [local().jobs_at_once(), local(tasks=2).jobs_at_once(), local(gpus=4).jobs_at_once()] == [4, 2, 1]
    assert local(n_jobs=3).jobs_at_once() == 3
    assert local(tasks=8).jobs_at_once() == 1


def test_two_jobs_at_a_time_without_cards(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_cards() == []
    assert local().jobs_at_once() == 2


def test_each_job_has_cards_of_its_own_and_gives_them_back(four):
    launcher = local(tasks=2)
    a, b, c = (Path(name) for name in "abc")
    for folder in (a, b):
        launcher._running[folder] = object()
        launcher.cards_of(folder)
    assert sorted(launcher._taken[a] + launcher._taken[b]) == ["0", "1", "2", "3"]
    freed = launcher._taken[a]
    del launcher._running[a]
    assert launcher.cards_of(c) == freed


def test_more_jobs_than_cards_share_the_least_used(four):
    launcher = local(n_jobs=6)
    for name in "abcdef":
        launcher._running[Path(name)] = object()
        launcher.cards_of(Path(name))
    used = [card for cards in launcher._taken.values() for card in cards]
    assert sorted(used.count(card) for card in "0123") == [1, 1, 2, 2]


def test_more_cards_than_there_are_is_refused(four):
    with pytest.raises(UserError, match=r"gpus_per_node: a job asks for 5 GPUs, and this machine has 4"):
        local(gpus=5).check()
    local(gpus=4).check()


def test_jobs_see_their_cards(tmp_path):
    """Two jobs at a time on two pretended cards: each manifest names another one."""
    import json

    from tests.sweep.test_driver import run

    code, output = run(tmp_path, "-m", "seed=0,1", *ONE_STEP, "tracking=none", CUDA_VISIBLE_DEVICES="4,7")
    assert code == 0, output
    manifests = [json.loads(f.read_text()) for f in tmp_path.glob("outputs/sweeps/*/*/manifest.json")]
    assert sorted(m["hardware"]["visible_gpus"] for m in manifests) == ["4", "7"]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["device=auto"], "--gpus-per-node=1"),
        (["device=auto", "hydra.launcher.tasks_per_node=4"], "--gpus-per-node=4"),
        (["device=auto", "hydra.launcher.gpus_per_node=0"], None),
        ([], None),  # the embedded model's YAML says device=cpu
        (["model=tiny,hf", "model.path=embedded", "model.context_length=64"], "--gpus-per-node=1"),
    ],
)
def test_slurm_is_asked_for_a_gpu_for_each_process_unless_the_jobs_compute_on_the_cpu(tmp_path, more, says):
    arguments = ["-m", "method=rlrt,grpo", "hydra/launcher=slurm", "hydra.launcher.dry_run=true", *ONE_STEP, *more]
    done = forked("run", arguments, tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "gpus" in line]
    assert (lines == [f"#SBATCH {says}"]) if says else not lines, done.stdout


def test_a_rank_with_vllm_in_its_process_sees_its_own_card_alone(four, monkeypatch):
    """vLLM's engine in a process takes the first GPU that the process sees, whatever the rank."""
    for name, value in (("WORLD_SIZE", "4"), ("LOCAL_RANK", "2")):
        monkeypatch.setenv(name, value)
    see_own_card()
    assert visible_cards() == ["2"]
    see_own_card()  # a second call finds one card, and leaves it
    assert visible_cards() == ["2"]


def test_a_single_process_sees_all_cards(four, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    see_own_card()
    assert visible_cards() == ["0", "1", "2", "3"]


def test_a_card_is_chosen_before_cuda_starts(four, monkeypatch):
    import torch

    for name, value in (("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(RuntimeError, match="CUDA was started before"):
        see_own_card()


def test_a_run_chooses_its_card_first(tmp_path, monkeypatch):
    """Only for an engine that wants it, and before the processes meet."""
    from rlrt.execution import execute as module
    from tests.helpers import settings

    calls = []
    monkeypatch.setattr(module, "see_own_card", lambda: calls.append("card"))

    def meet(*_):
        calls.append("meet")
        raise RuntimeError("enough")

    monkeypatch.setattr(module, "connected", meet)
    for engine in ("engine=hf", "engine=vllm"):
        with pytest.raises(RuntimeError, match="enough"):
            module.execute(settings(engine), tmp_path, lambda line: None, lambda: False)
    assert calls == ["meet", "card", "meet"]
