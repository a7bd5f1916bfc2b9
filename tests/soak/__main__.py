"""``python -m tests.soak [--minutes 60] [--seed 0] [--jobs 30]``: two sweeps, and all that may befall them (``make soak``).

As root, for the hosts; the sweeps are those of SLURM_NODES_USER (default: nobody). A grid of jobs of two nodes each, and an
Optuna search whose folder lies on a small disk, run at once. They are given first undisturbed, then again and again while a
seeded plan kills ranks, jobs and drivers, takes nodes, cables, MLflow and slurmctld away and fills the disk. Whenever one has
ended well it is compared with the undisturbed one, and a new one begins.
"""

from __future__ import annotations

import os

os.environ.setdefault("SLURM_NODES_USER", "nobody")  # before tests.slurm_nodes.hosts reads it

import argparse
import datetime
import shutil
import sys
import time
from collections import Counter
from pathlib import Path

import torch

from rlrt.records.manifest import cpu_name
from tests.kills.page import put
from tests.slurm_nodes import hosts
from tests.soak.check import faults, jobs_of
from tests.soak.plan import plan
from tests.soak.world import MLFLOW, QUIET, SLURM, SMALL, Command, World

HEADING = "## Everything at once"
LAST_MINUTES = 20
"""Longest wait for the sweeps' end once nothing is done to them any more."""
METHODS = ("grpo", "rlrt", "sd")


class Soak:
    """One soak, from the undisturbed sweeps to the page."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.begin = arguments, time.monotonic()
        self.lines: list[str] = []
        self.rows: list[str] = []
        self.faults: list[str] = []
        self.checked: Counter[str] = Counter()
        self.jobs_checked = 0
        self.world = World(arguments.disk_mb, self.say)

    def say(self, line: str) -> None:
        print(f"{(time.monotonic() - self.begin) / 60:6.2f} min  {line}", flush=True)

    def commands(self, kind: str) -> list[Command]:
        """The two commands, whose sweeps lie in ``calm`` and ``disturbed`` folders."""
        place, steps = self.world.place, f"train.steps={self.arguments.steps}"
        common = ("device=cpu", f"tracking.uri={MLFLOW}", steps, *SMALL, *SLURM)
        seeds = ",".join(map(str, range(max(1, self.arguments.jobs // len(METHODS)))))
        grid = (f"method={','.join(METHODS)}", f"seed={seeds}", "hydra.launcher.nodes=2", *common)
        search = (
            "hydra/sweeper=optuna", "hydra/sweeper/sampler=grid", "hydra.sweeper.n_jobs=2", "method=rlrt", "train.lr=1e-3,1e-4",
            f"method.lambda_init={','.join(str((n + 1) / 4) for n in range(max(1, self.arguments.trials // 2)))}", *common,
        )  # fmt: skip
        made = []
        for name, words, root in (("grid", grid, place / kind), ("search", search, self.world.disk / kind)):
            root.mkdir(parents=True, exist_ok=True)
            hosts.give(root)
            made.append(Command(f"{kind}-{name}", words, root, place))
        return made

    def run(self) -> None:
        """Do it all."""
        self.world.begin()
        self.say(f"hosts are up; the sweeps are {hosts.USER}'s")
        self.calm = self.commands("calm")
        self.world.commands = self.calm
        self.until_over(self.calm)
        if any(command.codes != [0] for command in self.calm):
            raise SystemExit(f"the undisturbed sweeps did not end well: {[c.codes for c in self.calm]}")
        self.say("the undisturbed sweeps have ended")
        for command in self.calm:  # off the small disk, out of everybody's way
            kept = self.world.place / "kept" / command.sweep.name
            shutil.copytree(command.sweep, kept)
            command.root = kept.parent
        shutil.rmtree(self.world.disk / "calm")
        self.disturbed = self.world.commands = self.commands("disturbed")
        self.disturb()
        self.say("the last disturbance is over")
        self.until_over(self.disturbed)
        for command in self.disturbed:
            self.check(command)
        if left := hosts.tasks(self.world.place):
            self.faults.append(f"processes of jobs are left: {left}")

    def until_over(self, commands: list[Command]) -> None:
        end = time.monotonic() + LAST_MINUTES * 60
        while sum(command.watch() for command in commands) < len(commands):
            if time.monotonic() > end:
                self.faults += [f"{c.sweep.name} did not end in {LAST_MINUTES} min" for c in commands if not c.over]
                return
            time.sleep(0.5)

    def disturb(self) -> None:
        """Follow the plan; begin anew whatever has ended well and was right."""
        begin = time.monotonic()
        left = plan(self.arguments.minutes, self.arguments.seed, self.arguments.gap)
        while left or self.world.lasting:
            now = time.monotonic() - begin
            for kind in self.world.put_right(now):
                self.say(f"{kind}: put right")
            while left and left[0].at <= now:
                what = left.pop(0)
                told = self.world.disturb(what)
                if not told.startswith("nothing"):
                    self.rows.append(f"| {now / 60:.2f} | {what.kind} | {told} |")
                self.say(f"{what.kind}: {told}")
            for command in self.disturbed:
                if command.watch() and left and not self.world.lasting & {"disk", "mlflow"}:
                    self.check(command)
                    command.next_round()
            time.sleep(0.5)

    def check(self, command: Command) -> None:
        """Compare a sweep that is over with the undisturbed one."""
        (calm,) = (c for c in self.calm if c.name.split("-")[1] == command.name.split("-")[1])
        if not command.over:
            return
        self.world.await_mlflow()
        code, output = hosts.run(self.world.place, str(command.sweep), module="rlrt.sync", **QUIET)
        if code:
            self.faults.append(f"{command.sweep.name}: rlrt.sync: {output}")
        found = faults(command.sweep, calm.sweep, self.world.place / "mlflow" / "server.db")
        self.faults += [f"{command.sweep.name}: {fault}" for fault in found]
        jobs = jobs_of(command.sweep)
        self.checked[command.name.split("-")[1]] += 1
        self.jobs_checked += len(jobs)
        for fault in found:
            self.say(f"FAULT {command.sweep.name}: {fault}")
        self.say(
            f"{command.sweep.name}: {len(jobs)} jobs compared, {len(found)} faults; drivers so far {command.codes}"
        )
        if not found and command.root.is_relative_to(self.world.disk):
            shutil.rmtree(command.sweep)  # the small disk is for one sweep

    def page(self) -> list[str]:
        """The part of the page."""
        what = Counter(row.split("|")[2].strip() for row in self.rows)
        done = ", ".join(f"{count} x {kind}" for kind, count in sorted(what.items()))
        drivers = sum(len(command.codes) for command in self.disturbed)
        command = f"python -m tests.soak {' '.join(sys.argv[1:])}".strip()
        end = (
            f"**{len(self.faults)} faults.**"
            if self.faults
            else "**Nothing lost, nothing twice, all equal to the bit.**"
        )
        return [
            HEADING,
            "",
            f"`{command}`, {datetime.date.today()}, {cpu_name()}, torch {torch.__version__}: three nodes and a login host "
            f"(namespaces), sweeps of the user {hosts.USER}, {self.arguments.minutes:g} min of disturbances ({done}). "
            f"{self.checked['grid']} grids and {self.checked['search']} searches ended, {self.jobs_checked} jobs, by {drivers} "
            "drivers. Each was compared with an undisturbed one: record, samples, summary, every file of every checkpoint byte "
            f"for byte, one MLflow run a job with each value once, trials. {end}",
            "",
            *(f"- {fault}" for fault in self.faults),
            *([""] if self.faults else []),
            "| minute | what | to whom |",
            "|---|---|---|",
            *self.rows,
        ]


def main() -> None:
    """Run a soak and write its part of the page."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=main.__doc__)
    parser.add_argument("--minutes", type=float, default=60, help="of disturbances")
    parser.add_argument("--seed", type=int, default=0, help="of the plan")
    parser.add_argument("--jobs", type=int, default=30, help="of the grid")
    parser.add_argument("--trials", type=int, default=8, help="of the search")
    parser.add_argument("--steps", type=int, default=24, help="of a job")
    parser.add_argument("--gap", type=float, default=25, help="seconds between disturbances, on average")
    parser.add_argument("--disk-mb", type=int, default=200, help="of the search's disk")
    parser.add_argument("--log", type=Path, default=Path("docs/torture.md"))
    arguments = parser.parse_args()
    if sentence := hosts.missing():
        raise SystemExit(sentence)
    soak = Soak(arguments)
    try:
        soak.run()
    finally:
        soak.world.end()
    put(arguments.log, HEADING, soak.page())
    raise SystemExit(int(bool(soak.faults)))


if __name__ == "__main__":
    main()
