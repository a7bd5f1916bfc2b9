"""A pretended SLURM: commands that keep a list of jobs in a folder, take as many as a limit allows, and end them when asked."""

from __future__ import annotations

import json
import sys
from pathlib import Path

COMMAND = r"""#!{python} -SE
import json, pathlib, re, sys

root = pathlib.Path({root!r})
name, words = pathlib.Path(sys.argv[0]).name, sys.argv[1:]
with (root / "calls").open("a") as calls:
    print(name, *words, file=calls)
file = root / "jobs.json"
jobs = json.loads(file.read_text()) if file.exists() else {{}}
settings = json.loads((root / "settings.json").read_text())


def live():
    return [i for i, job in jobs.items() if job["state"] == "PENDING"]


def finish(ids):
    for spec in pathlib.Path(settings["cwd"]).glob("**/job.json"):
        if json.loads(spec.read_text()).get("slurm_id") in ids:
            summary = {{"state": "finished", "step": 1, "final": settings["final"]}}
            (spec.parent / "summary.json").write_text(json.dumps(summary))
    for i in ids:
        jobs[i]["state"] = "COMPLETED"


if name == "sbatch":
    text = pathlib.Path(words[-1]).read_text()
    array = re.search(r"--array=0-(\d+)", text)
    count = int(array[1]) + 1 if array else 1
    if len(live()) + count > settings["limit"]:
        print(settings["refusal"], file=sys.stderr)
        sys.exit(1)
    number = str(1 + max((int(i.split("_")[0]) for i in jobs), default=0))
    job = re.search(r"--job-name=(\S+)", text)[1]
    jobs |= {{f"{{number}}_{{n}}" if array else number: {{"state": "PENDING", "name": job}} for n in range(count)}}
    file.write_text(json.dumps(jobs))
    print(f"Submitted batch job {{number}}")
elif name == "squeue":
    finish(live()[: settings["ends"]])
    file.write_text(json.dumps(jobs))
    if "-n" in words:
        print(*(i.split("_")[0] for i, job in jobs.items() if job["name"] == words[words.index("-n") + 1]), sep=chr(10))
    else:
        print(*(f"{{i}}|{{job['state']}}|{{job['name']}}" for i, job in jobs.items()), sep=chr(10))
elif name == "scontrol":
    print(f"MaxArraySize            = {{settings['array']}}")
"""


class Cluster:
    """The commands, in a folder that goes in front of PATH."""

    REFUSAL = (
        "sbatch: error: AssocMaxSubmitJobLimit\nsbatch: error: Batch job submission failed: Job violates accounting/QOS policy "
        "(job submit limit, user's size and/or time limits)"
    )

    def __init__(
        self, root: Path, cwd: Path, limit: int, ends: int = 0, array: int = 1001, refusal: str = REFUSAL
    ) -> None:
        self.root, self.cwd = root, cwd
        root.mkdir()
        self.set(limit=limit, ends=ends, array=array, refusal=refusal, final={})
        for name in ("sbatch", "squeue", "scancel", "scontrol", "srun"):
            (root / name).write_text(COMMAND.format(python=sys.executable, root=str(root)))
            (root / name).chmod(0o755)

    def set(self, **settings: object) -> None:
        """Change what it does: how many jobs it takes, how many it ends at every squeue, and with which numbers."""
        file = self.root / "settings.json"
        before = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps(before | {"cwd": str(self.cwd)} | settings))

    def calls(self, command: str) -> list[str]:
        """The calls of a command so far."""
        file = self.root / "calls"
        return [line for line in file.read_text().splitlines() if line.split()[0] == command] if file.exists() else []

    def jobs(self) -> dict[str, dict[str, str]]:
        """Jobs by id: state and name."""
        file = self.root / "jobs.json"
        return json.loads(file.read_text()) if file.exists() else {}
