"""Jobs of several processes on a real SLURM, and (fake) GPUs: its cluster has two, /dev/tty0 and /dev/tty1."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.slurm.test_slurm import SLURM, cluster, steps_done  # noqa: F401
from tests.sweep.test_driver import SMALL, finish, only, run, start, wait_for

pytestmark = pytest.mark.slurm
TWO = ("hydra.launcher.tasks_per_node=2", "hydra.launcher.mem_gb=3")


def test_a_job_of_two_tasks_meets_by_slurms_variables_and_is_one_run(tmp_path):
    code, output = run(
        tmp_path, "-m", "method=grpo", "train.steps=4", "distributed.strategy=fsdp", *SMALL, *SLURM, *TWO, timeout=200
    )
    assert code == 0, output
    (job,) = only(tmp_path).glob("*/job.json")
    manifest = json.loads((job.parent / "manifest.json").read_text())
    assert manifest["processes"] == 2
    assert [r["step"] for r in map(json.loads, (job.parent / "metrics.jsonl").read_text().splitlines())] == [
        0,
        1,
        2,
        3,
        4,
    ]
    (script,) = only(tmp_path).glob("submitit/*_submission.sh")
    assert "#SBATCH --ntasks-per-node=2" in script.read_text()
    assert "#SBATCH --nodes=1" in script.read_text()


def test_a_killed_task_is_named_and_the_job_tried_again(tmp_path):
    driver = start(
        tmp_path, "-m", "method=grpo", "train.steps=60", "train.save_every=5", *SMALL, *SLURM, *TWO
    )  # fmt: skip
    wait_for(lambda: steps_done(tmp_path, "grpo") > 6)
    (pid,) = tasks(tmp_path, "SLURM_PROCID=1")
    os.kill(pid, signal.SIGKILL)
    (job,) = only(tmp_path).glob("*/job.json")
    wait_for(lambda: json.loads(job.read_text())["retries"] == 1, seconds=60)
    code, output = finish(driver, 200)
    assert code == 0, output
    assert re.search(rf"rank 1 \(pid {pid} on \S+\) is gone", (job.parent / "log.txt").read_text())


def tasks(cwd, word):
    """Python processes of jobs of this folder whose environment holds ``word``."""
    found = subprocess.run(["pgrep", "-f", "submitit.core._submit"], capture_output=True, text=True, check=False)
    for pid in map(int, found.stdout.split()):
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if word.encode() in environment and str(cwd).encode() in command and b"srun" not in command.split(b"\0")[0]:
            yield pid


def test_every_job_of_an_array_has_a_gpu_of_its_own(tmp_path):
    code, output = run(
        tmp_path, "-m", "method=grpo", "seed=0,1", "train.steps=40", "device=cpu", *SMALL, *SLURM,
        "hydra.launcher.gpus_per_node=1", timeout=200,
    )  # fmt: skip
    assert code == 0, output
    manifests = [json.loads(f.read_text()) for f in sorted(only(tmp_path).glob("*/manifest.json"))]
    spans = [json.loads(f.read_text()) for f in sorted(only(tmp_path).glob("*/summary.json"))]
    began = [s["changed"] - s["seconds"] for s in spans]
    assert max(began) < min(s["changed"] for s in spans), "they did not run at one time"
    assert sorted(m["hardware"]["visible_gpus"] for m in manifests) == ["0", "1"]
