"""Two processes (gloo) do what one does, and neither waits for ever for the other."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from pathlib import Path

import pytest

from rlrt.execution.execute import execute
from rlrt.paths import saved_steps
from tests.forked import forked
from tests.helpers import settings
from tests.sweep.test_driver import finish, only, run, start, wait_for

SMALL = ("train.prompts_per_step=4", "eval.prompts=8", "tracking=none", "train.eval_every=0")
TORCHRUN = ("--standalone", "--nproc-per-node", "2", "-m")
ROOT = str(Path(__file__).resolve().parents[2])


def torchrun(cwd, *arguments, timeout=200, **more):
    return run(
        cwd,
        *TORCHRUN,
        *arguments,
        module="torch.distributed.run",
        timeout=timeout,
        OMP_NUM_THREADS="1",
        PYTHONFAULTHANDLER="1",
        **more,
    )


def records(folder: Path):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def alike(one, other, tolerance=1e-4):
    """Whether the numbers of two records agree, times and the traffic of weights apart."""
    names = {k for k in one if not k.startswith(("time/", "engine/"))}
    assert names == {k for k in other if not k.startswith(("time/", "engine/"))}
    return {k: (one[k], other[k]) for k in names if abs(float(one[k]) - float(other[k])) > tolerance} == {}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gradients")
    code, output = torchrun(folder, "tests.distributed.gradients", str(folder / "found.json"), PYTHONPATH=ROOT)
    assert code == 0, output
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_the_gradient_is_that_of_one_process(found, strategy):
    mine = {k: v for k, v in found.items() if k.endswith(strategy)}
    assert len(mine) == 12
    for name, numbers in mine.items():
        assert numbers["scale"] > 1e-4, name
        assert numbers["apart"] < 1e-6, (name, numbers)
        assert numbers["metrics"] < 1e-6, (name, numbers)
    assert mine[f"sd, two mini-batches, {strategy}"]["steps"] == 2


def test_two_processes_sample_ahead_as_one_does(tmp_path):
    """The thread's collectives have a channel of their own beside the update's; the numbers are one process's."""
    words = (
        *SMALL, "engine._target_=tests.engines.copying.CopyingEngine", "+engine.importance_clip=2.0", "+engine.off=0.0",
        "train.sample_ahead=true", "train.steps=4", "train.minibatches=2", "train.lr=1e-3", "train.save_every=2",
    )  # fmt: skip
    code, output = torchrun(tmp_path, "rlrt.run", *words, f"hydra.run.dir={tmp_path / 'two'}", PYTHONPATH=ROOT)
    assert code == 0, output
    execute(settings(*words), tmp_path / "one", lambda line: None, lambda: False, progress=False)
    for one, two in zip(records(tmp_path / "one"), records(tmp_path / "two"), strict=True):
        assert alike(one, two)
    assert [row["rollout/staleness"] for row in records(tmp_path / "two")[1:]] == [0, 2, 2, 2]


@pytest.mark.parametrize(("grace", "reached"), [("1", 5), pytest.param("60", 6, marks=pytest.mark.long)])
def test_a_run_of_two_processes_is_that_of_one_and_one_goes_on_with_it(tmp_path, held, grace, reached):
    """FSDP, a moving teacher: stopped by a signal to the second process alone, which is in its sixth step; with one second left
    it may not end it."""
    hold = held(5)
    words = ("teacher.weights=ema", "train.save_every=0", "train.steps=8", *SMALL, *hold.keys)
    more = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "RLRT_GRACE_S": grace}
    together = tmp_path / "together"
    process = start(
        tmp_path, *TORCHRUN, "rlrt.run", "distributed.strategy=fsdp", *words, f"hydra.run.dir={together}",
        module="torch.distributed.run", **more,
    )  # fmt: skip
    wait_for(lambda: len(hold.waiting()) == 2)
    second = next(pid for pid in ranks(together.parent, "RANK=1"))
    os.kill(second, signal.SIGUSR2)
    hold.release()
    _, output = finish(process)
    stopped = json.loads((together / "summary.json").read_text())
    assert (stopped["state"], stopped["step"]) == ("interrupted", reached), output
    assert list(saved_steps(together)) == [reached]
    assert json.loads((together / "manifest.json").read_text())["processes"] == 2
    assert output.count("interrupted after") == 1  # one of them speaks
    said = []
    for folder in (together, tmp_path / "alone"):
        done = forked("run", [*words, f"hydra.run.dir={folder}"], tmp_path)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout + done.stderr)
    assert "Going on from" in said[0]
    both = list(zip(records(together), records(tmp_path / "alone"), strict=True))
    assert len(both) == 8 + 1
    for mine, other in both[:4]:
        assert alike(mine, other), (mine, other)
    for mine, other in both[
        1:reached
    ]:  # sharded weights are gathered into a copy of 155,264 numbers; one process samples by its own
        assert mine["engine/sync_gb"] * 1e9 % (4 * 155_264) == pytest.approx(0, abs=1)
        assert mine["time/sync_s"] > 0
        assert "engine/sync_gb" not in other
    assert both[-1][0]["eval/avg_at_8"] == pytest.approx(both[-1][1]["eval/avg_at_8"], abs=0.1)


def test_a_checkpoint_of_two_processes_evaluates_the_same_on_one(tmp_path):
    code, output = torchrun(tmp_path, "rlrt.run", "train.steps=2", *SMALL, f"hydra.run.dir={tmp_path}/run")
    assert code == 0, output
    last = records(tmp_path / "run")[-1]
    done = forked("evaluate", [str(tmp_path / "run")], tmp_path)
    assert done.returncode == 0, done.stderr
    (measured,) = (tmp_path / "run" / "evaluations").glob("*/problems.jsonl")
    rows = [json.loads(line) for line in measured.read_text().splitlines()]
    assert sum(r["correct"] for r in rows) / sum(r["samples"] for r in rows) == last["eval/avg_at_8"]
    assert sum(r["greedy"] for r in rows) / len(rows) == last["eval/greedy"]


def ranks(folder: Path, word: str):
    """Processes of a run below a folder whose environment holds ``word``."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command, environment = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
            here = Path(os.readlink(entry / "cwd"))
        except OSError:
            continue
        if here == folder and word.encode() in environment.split(b"\0") and b"torch.distributed.run" not in command:
            yield int(entry.name)


def running_steps(cwd):
    for record in (cwd / "outputs").glob("sweeps/*/*/metrics.jsonl"):
        return len(record.read_text().splitlines()) - 1
    return 0


@pytest.mark.parametrize(
    ("number", "victim"),
    [
        (signal.SIGSTOP, 1),
        pytest.param(signal.SIGKILL, 0, marks=pytest.mark.long),
        pytest.param(signal.SIGKILL, 1, marks=pytest.mark.long),  # SLURM's tests kill that one too
    ],
)
def test_a_lost_process_ends_the_job_is_named_and_the_sweep_tries_again(tmp_path, number, victim):
    patience = "distributed.patience_s=6"
    driver = start(
        tmp_path, "-m", "method=grpo", "train.steps=60", "train.save_every=5", patience, *SMALL, "hydra.launcher.n_jobs=1",
        "hydra.launcher.tasks_per_node=2",
    )  # fmt: skip
    wait_for(lambda: running_steps(tmp_path) > 6)
    (pid,) = ranks(tmp_path, f"SUBMITIT_LOCAL_GLOBALID={victim}")
    os.kill(pid, number)
    (folder,) = only(tmp_path).glob("*/job.json")
    wait_for(lambda: json.loads(folder.read_text())["retries"] == 1)
    code, output = finish(driver, 200)
    logs = "".join(f.read_text() for f in folder.parent.glob("log*.txt"))
    words = "is gone: it was killed" if number == signal.SIGKILL else "kept the others waiting for 6 s"
    assert re.search(rf"rank {victim} \(pid {pid} on \S+\) {words}", logs), logs
    assert code == 0, output
    assert json.loads((folder.parent / "summary.json").read_text())["state"] == "finished"
    assert not Path(f"/proc/{pid}").exists()  # one that hung was ended


def test_what_one_process_fails_of_is_told_to_the_other(tmp_path):
    """An engine that raises in the second process: the first names it, with the error."""
    (tmp_path / "mine.py").write_text(
        "import os\nfrom dataclasses import dataclass\nfrom rlrt.engines.hf import HfEngine\n\n\n"
        "@dataclass\nclass Mine(HfEngine):\n    def sample(self, *given):\n"
        "        if os.environ['RANK'] == '1':\n            raise ZeroDivisionError('in rank 1')\n"
        "        return super().sample(*given)\n"
    )
    words = ("engine._target_=mine.Mine", "train.steps=2", *SMALL, "hydra.run.dir=out")
    code, _ = torchrun(tmp_path, "rlrt.run", *words, PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert code != 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["state"] == "failed"
    assert re.search(r"rank 1 \(pid \d+ on \S+\) failed: ZeroDivisionError: in rank 1", summary["error"])


def test_more_processes_than_rollouts_is_one_sentence(tmp_path):
    code, output = run(
        tmp_path, "--standalone", "--nproc-per-node", "3", "-m", "rlrt.run", "method=rloo", "train.prompts_per_step=1",
        "train.rollouts_per_prompt=2", "eval.prompts=4", "hydra.run.dir=out", "tracking=none", module="torch.distributed.run",
        OMP_NUM_THREADS="1",
    )  # fmt: skip
    assert code != 0
    assert output.count("error: this run has 3 processes and a step has 2 rollouts") == 1  # said once, not by each
    assert not (tmp_path / "out").exists()


def test_only_the_main_rank_makes_the_folder(tmp_path):
    """A rank that is there before rank 0, and one that comes after its refusal: no folder stays of a run that never began."""
    words = ("method=rloo", "train.lr=-1", "hydra.run.dir=out/deep", "tracking=none")
    for rank in ("1", "0", "2"):
        code, output = run(tmp_path, *words, module="rlrt.run", RANK=rank, WORLD_SIZE="3")
        assert code == 2
        assert output.count("error: train.lr") == (rank == "0"), output
        assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob("log*"))


def test_a_port_in_use_is_one_sentence(tmp_path):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code, output = run(
            tmp_path, *SMALL, "hydra.run.dir=out", WORLD_SIZE="2", RANK="0", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
        )  # fmt: skip
    assert code == 2
    assert f"error: MASTER_PORT: port {port}" in output
    assert "in use" in output
    assert "Traceback" not in output
    assert not (tmp_path / "out").exists()


def test_a_rank_that_meets_nobody_says_so_itself(tmp_path):
    """Rank 0 speaks for all, except where it cannot know."""
    code, output = run(
        tmp_path, *SMALL, "hydra.run.dir=out", "distributed.meeting_s=0.5", WORLD_SIZE="2", RANK="1", LOCAL_RANK="1",
        MASTER_ADDR="127.0.0.1", MASTER_PORT="1",
    )  # fmt: skip
    assert code == 2
    assert "error: rank 1 of 2 could not meet the others at 127.0.0.1:1" in output
    assert "Connection refused" in output
    assert not (tmp_path / "out").exists()


def test_half_an_environment_is_one_sentence(tmp_path):
    code, output = run(tmp_path, *SMALL, "hydra.run.dir=out", WORLD_SIZE="2")
    assert code == 2
    assert "error: WORLD_SIZE=2: several processes need RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT too" in output
