"""What some ranks wrote other numbers of ranks take over exactly, each reading its own part; a torn save costs nothing."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from rlrt.distributed.sharding import put, whole
from rlrt.distributed.world import connect
from rlrt.errors import DiskFull, UserError
from rlrt.execution.build import build_learner
from rlrt.execution.execute import execute
from rlrt.execution.saver import Saver
from rlrt.execution.snapshot import restore_checkpoint, trainer_tensors
from rlrt.execution.stop import Pace
from rlrt.paths import saved_steps
from rlrt.records import checkpoints, shards
from rlrt.records.checkpoints import damage
from tests.distributed import ranks
from tests.execution.test_resume import numbers
from tests.held import wait_while
from tests.helpers import settings

KINDS = {
    "full": ("teacher.weights=ema", "method=sd"),
    "bfloat16": ("train.save_dtype=bfloat16",),
    "adapters": ("model.lora=4", "method=sd", "teacher.weights=ema"),
}
ODD = 0.1
"""The odd numbers of ``moved`` are no bfloat16 numbers."""


def learner_of(kind, strategy):
    """A rank's learner at step 0."""
    made = settings(*KINDS[kind], f"distributed.strategy={strategy}", "train.steps=9")
    return made, build_learner(made, connect(60.0, on_gpu=False))


@torch.no_grad()
def moved(learner):
    """Do an optimiser step and a teacher's step that are functions of each number's place alone, whoever holds it."""
    model = learner.policy.model
    for parameter in model.parameters():
        if parameter.requires_grad:
            whole_gradient = torch.arange(float(math.prod(parameter.shape))).reshape(parameter.shape).sin() + ODD
            parameter.grad = torch.zeros_like(parameter)
            put({"": parameter.grad}, {"": whole_gradient})
    learner.policy.optimiser.step()
    learner.teacher.follow()
    learner.policy.optimiser.zero_grad()


def state_of(learner):
    """All that a checkpoint holds, as whole tensors."""
    tensors = trainer_tensors(learner, weights=True)
    return {name: whole(tensor).detach().clone() for name, tensor in tensors.items()}


def write(kind, strategy, folder):
    """In a rank: move and save, in the background."""
    made, learner = learner_of(kind, strategy)
    moved(learner)
    with Saver(learner, folder, made.train, Pace(lambda: math.inf)) as saver:
        saver.save(3, None)
        moved(learner)  # while it is written
    learner.world.leave()


def read(kind, strategy, folder):
    """In a rank: take over, and leave what is there then."""
    made, learner = learner_of(kind, strategy)
    assert restore_checkpoint(learner, folder / "step_3", made.model.attn_implementation) == (3, None)
    state = state_of(learner)
    if learner.world.main:
        save_file(state, folder / "read.safetensors")
    learner.world.leave()


@pytest.fixture(scope="module")
def expected():
    """The state of one process that writes nothing, by kind."""
    states = {}
    for kind in KINDS:
        learner = build_learner(settings(*KINDS[kind]))
        moved(learner)
        states[kind] = state_of(learner)
    return states


@pytest.mark.parametrize(
    ("kind", "strategy", "writers", "readers"),
    [
        ("full", "fsdp", 2, 1),
        ("full", "fsdp", 1, 2),
        ("full", "fsdp", 2, 3),
        ("full", "ddp", 2, 3),
        ("bfloat16", "fsdp", 2, 3),
        ("bfloat16", "ddp", 1, 2),
        ("adapters", "fsdp", 2, 3),
    ],
)
def test_other_numbers_of_ranks_take_over_the_same_state(tmp_path, expected, kind, strategy, writers, readers):
    ranks.together(writers, lambda: write(kind, strategy, tmp_path))
    assert damage(tmp_path / "step_3") is None
    ranks.together(readers, lambda: read(kind, strategy, tmp_path))
    found = load_file(tmp_path / "read.safetensors")
    assert found.keys() == expected[kind].keys()
    assert [n for n in found if not torch.equal(found[n], expected[kind][n])] == []
    parts = sorted((tmp_path / "step_3/trainer").glob("*.safetensors"))
    assert [p.name for p in parts] == [f"shard-{k + 1:05}-of-{writers:05}.safetensors" for k in range(writers)]
    sizes = [p.stat().st_size for p in parts]
    assert max(sizes) < 1.5 * min(sizes)  # each rank writes about as much
    models = sorted((tmp_path / "step_3").glob("*.safetensors"))
    assert len(models) == writers
    stored = [name for file in models for name in load_file(file)]
    assert len(stored) == len({*stored})
    if writers > 1:
        index = json.loads((tmp_path / "step_3/model.safetensors.index.json").read_text())
        assert index["weight_map"].keys() == {*stored}
    served = AutoModelForCausalLM.from_pretrained(tmp_path / "step_3", dtype=torch.float32)
    weights = {n.removeprefix("weights."): t for n, t in found.items() if n.startswith("weights.")}
    if kind != "adapters":
        rounded = torch.bfloat16 if kind == "bfloat16" else torch.float32
        assert all(torch.equal(served.get_parameter(n), t.to(rounded).float()) for n, t in weights.items())
        assert kind == "full" or any(not torch.equal(t, t.bfloat16().float()) for t in weights.values())
        assert json.loads((tmp_path / "step_3/config.json").read_text())["dtype"] == str(rounded)[6:]


SHARD, SHARD_1 = (f"trainer/shard-00001-of-0000{n}.safetensors" for n in (1, 2))
MOVING = ("teacher.weights=ema",)
SMALL = (
    "train.steps=4", "train.prompts_per_step=2", "train.rollouts_per_prompt=4", "train.eval_every=0", "eval.prompts=2",
    "eval.samples_per_prompt=2", "tracking=none",
)  # fmt: skip


def run(folder, *words, stop_after=None):
    """In a rank: a run, or the rest of one."""
    asked = iter(range(1, 1000))
    stop = (lambda: next(asked) >= stop_after) if stop_after else (lambda: False)
    execute(settings(*SMALL, *words), folder, lambda line: None, stop, progress=False)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder of a run of one process."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    ranks.together(1, lambda: run(folder, *MOVING))
    return folder


def test_a_run_goes_on_with_more_ranks_and_with_fewer(tmp_path, undisturbed):
    words = (*MOVING, "distributed.strategy=fsdp")
    for size, stop_after in ((2, 1), (3, 2), (1, None)):
        ranks.together(size, lambda n=stop_after: run(tmp_path, *words, stop_after=n))
    agrees(tmp_path, undisturbed)


def agrees(folder, other):
    """Whether the numbers of two runs are the same, up to the order of sums."""
    for mine, theirs in zip(numbers(folder), numbers(other), strict=True):
        names = {k for k in mine if not k.startswith("engine/")}  # one process moves no weights
        assert names == {k for k in theirs if not k.startswith("engine/")}
        assert [k for k in names if abs(float(mine[k]) - float(theirs[k])) > 1e-4] == []


def held_run(folder, hold, rank, *words):
    """In a rank: a run whose process ``rank`` stops in the middle of its shard of step 2, until the file ``hold`` is gone."""
    write = shards.write_all

    def write_half(file, part):
        if os.environ["RANK"] == str(rank) and "step_2.tmp/trainer/shard" in file.name:
            write(file, part[: len(part) // 2])
            wait_while(hold)
            part = part[len(part) // 2 :]
        write(file, part)

    shards.write_all = write_half
    run(folder, *words)


def wait_for(condition, pids):
    """Wait until something is so, as long as the processes live."""
    while not condition():
        assert all(os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None for pid in pids)
        time.sleep(0.02)


@pytest.fixture
def hold(tmp_path):
    """A file, in a folder of its own, that holds a process up."""
    (tmp_path / "hold").mkdir()
    (tmp_path / "hold/closed").touch()
    return tmp_path / "hold/closed"


def steps_done(folder):
    """Steps in a run's record."""
    return numbers(folder)[-1]["step"] if (folder / "metrics.jsonl").is_file() else -1


EVERY = ("train.save_every=1", "train.keep_last=1")


def test_a_kill_at_a_save_loses_nothing(tmp_path, undisturbed, hold, monkeypatch):
    """Three lives: killed while step 2 is half written (and step 3 is done meanwhile), killed between the renaming and the
    removal of the checkpoint before, and one that ends."""
    cut = tmp_path / "cut"
    (pid,) = ranks.start(1, lambda: held_run(cut, hold, 0, *MOVING, *EVERY))
    wait_for(lambda: list(hold.parent.glob("*.waits")) and steps_done(cut) == 3, [pid])
    os.kill(pid, signal.SIGKILL)
    assert ranks.ends([pid]) == [-signal.SIGKILL]
    assert list(saved_steps(cut)) == [1]
    assert damage(cut / "checkpoints/step_1") is None
    assert (cut / "checkpoints/step_2.tmp/trainer").is_dir()

    def dying():
        monkeypatch.setattr(checkpoints, "drop_old", lambda folder, keep, best: die_at(folder / "step_3"))
        run(cut, *MOVING, *EVERY)

    assert ranks.ends(ranks.start(1, dying)) == [-signal.SIGKILL]
    assert list(saved_steps(cut)) == [1, 2, 3]
    assert not list((cut / "checkpoints").glob("*.tmp"))
    ranks.together(1, lambda: run(cut, *MOVING, *EVERY))
    assert numbers(cut) == numbers(undisturbed)
    assert list(saved_steps(cut)) == [4]
    left, right = (load_file(f / "checkpoints/step_4" / SHARD) for f in (cut, undisturbed))
    assert left.keys() == right.keys()
    assert all(torch.equal(left[k], right[k]) for k in left)


def die_at(folder):
    """End this process at once if a folder is there."""
    if folder.exists():
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_rank_that_is_killed_in_its_part_ends_the_run_and_costs_that_checkpoint_alone(tmp_path, undisturbed, hold):
    cut = tmp_path / "cut"
    words = (*MOVING, "train.save_every=1", "distributed.strategy=fsdp")
    pids = ranks.start(2, lambda: held_run(cut, hold, 1, *words))
    wait_for(lambda: [*hold.parent.glob("*.waits")] and (cut / "checkpoints/step_2.tmp" / SHARD_1).is_file(), pids)
    os.kill(pids[1], signal.SIGKILL)
    assert ranks.ends(pids) == [1, -signal.SIGKILL]
    summary = json.loads((cut / "summary.json").read_text())
    assert summary["state"] == "failed"
    assert "rank 1" in summary["error"]
    assert "is gone" in summary["error"]
    assert list(saved_steps(cut)) == [1]
    assert damage(cut / "checkpoints/step_1") is None
    ranks.together(1, lambda: run(cut, *MOVING))
    agrees(cut, undisturbed)


def test_a_part_that_cannot_be_written_is_the_error_of_all(tmp_path):
    """Rank 1's disk is full in the background: both ends say so at the next boundary, and the checkpoint before is whole."""

    def full(file, part):
        if os.environ["RANK"] == "1" and "step_2.tmp" in file.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file.name)
        shards_write(file, part)

    def refused():
        shards.write_all = full
        with pytest.raises(DiskFull, match=r"the last checkpoint, .*step_1, is whole; free some space"):
            run(tmp_path / "cut", *MOVING, "train.save_every=1", "distributed.strategy=fsdp")

    shards_write = shards.write_all
    ranks.together(2, refused)
    assert list(saved_steps(tmp_path / "cut")) == [1]
    assert not list((tmp_path / "cut/checkpoints").glob("*.tmp"))


def test_a_folder_that_a_rank_does_not_see_is_one_sentence(tmp_path):
    def elsewhere():
        made, learner = learner_of("full", "ddp")
        saver = Saver(learner, tmp_path, made.train, Pace(lambda: math.inf))
        open_there = Path.open
        if learner.world.rank == 1:
            Path.open = lambda path, *more, **kw: open_there(Path("/nowhere") / path.name, *more, **kw)
        words = (
            "process 1 on .* does not see .*step_3.tmp, which process 0 made; give a folder on a disk that all nodes"
        )
        saver.save(3, None)
        with pytest.raises(UserError if learner.world.rank == 1 else RuntimeError, match=words):
            saver.wait()
        learner.world.leave()

    ranks.together(2, elsewhere)
    assert not (tmp_path / "step_3").exists()
