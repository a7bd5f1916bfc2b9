"""Writes checkpoints: each rank its part, while training goes on."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from rlrt.config.schema import Train
from rlrt.distributed.sharding import is_share
from rlrt.distributed.world import parts
from rlrt.errors import RankLost, Replaced, UserError, amount
from rlrt.execution.snapshot import WEIGHTS, trainer_tensors, trainer_values
from rlrt.execution.stop import Pace
from rlrt.model import hub
from rlrt.model.files import INDEX
from rlrt.model.lora import adapters
from rlrt.paths import STATE, TRAINER
from rlrt.records import checkpoints
from rlrt.records.claims import refuse_replaced
from rlrt.records.lease import LEASE
from rlrt.records.shards import Piece, Stopped, pieces_of, write_bytes, write_pieces
from rlrt.training.learner import Learner

log = logging.getLogger("rlrt")
POLL_S = 0.05
"""Seconds between two looks of rank 0 for the notes of the others."""
TEXTS = "texts"
"""Folder in which rank 0 makes the model's small files, before it keeps them as bytes."""
DONE = (0, "")
"""Outcome of a checkpoint that is complete."""
Content = list[Piece] | bytes | Callable[[], bytes]
"""What a file will hold: parts of tensors, bytes, or a function that makes them when they are written."""


@dataclass
class Job:
    """A checkpoint that is being written, as one rank sees it.

    Attributes:
        work: ``step_N.tmp``.
        files: what this rank writes, by path within the checkpoint.
        best: step of the best checkpoint when this one began, or None.
        stopped_s: seconds that the loop stood still for it so far.
        digests: SHA-256 of the files that are written.
        bytes: of all ranks; on rank 0, once it is written.
        seconds: that the writing took.
        error: why it failed.
    """

    work: Path
    files: dict[str, Content]
    best: int | None
    stopped_s: float = 0.0
    digests: dict[str, str] = field(default_factory=dict)
    bytes: int = 0
    seconds: float = 0.0
    error: BaseException | None = None
    thread: threading.Thread | None = None

    @property
    def outcome(self) -> tuple[int, str] | None:
        """None while it is being written, then ``DONE`` or (errno or 0, sentence) of its failure."""
        if self.thread is not None and self.thread.is_alive():
            return None
        return described(self.error) if self.error is not None else DONE


def described(error: BaseException) -> tuple[int, str]:
    """Return an error as plain values that other ranks can read."""
    return getattr(error, "errno", None) or 0, f"{type(error).__name__}: {error}"


def raised(outcome: tuple[int, str]) -> Exception:
    """Return the error of another rank."""
    number, text = outcome
    return OSError(number, os.strerror(number), text) if number else RuntimeError(text)


class Saver:
    """Writes a run's checkpoints. All ranks call its methods together.

    At a step's end each rank copies its part to host memory; a thread of each writes and digests it while the next steps run,
    and rank 0's renames the folder when all parts are there. At most one checkpoint is being written at a time. As a context
    it waits for the last one; where the run fails, for its own part alone.

    Args:
        learner: whose state is saved.
        folder: of the run's checkpoints.
        train: the config section.
        pace: learns how long a checkpoint takes.
        clock: seconds; tests replace it.
    """

    def __init__(
        self, learner: Learner, folder: Path, train: Train, pace: Pace, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._learner, self._folder, self._train, self._pace, self._clock = learner, folder, train, pace, clock
        self._world = learner.world
        self._dtype = torch.bfloat16 if train.save_dtype == "bfloat16" else torch.float32
        self._hurry = threading.Event()
        self._job: Job | None = None
        self._texts: dict[str, bytes] = {}
        self._pinned: dict[str, torch.Tensor] = {}
        self._seconds: dict[str, float] = {}

    def save(self, step: int, pending: dict[str, Any] | None) -> None:
        """Write a checkpoint of the current state; under ``train.save_async`` only begin to, unless it is the run's last.

        Args:
            pending: rollouts of the next step that were sampled ahead.

        Raises:
            OSError, UserError: if this or an earlier checkpoint could not be written.
        """
        begin = self._clock()
        self.wait()
        later = self._train.save_async and step < self._train.steps
        work = self._world.on_main(lambda: checkpoints.begin(self._folder, step))
        best = checkpoints.best_step(self._folder)
        job = self._job = Job(work, self._contents(work, step, pending, later), best)
        if later:
            job.thread = threading.Thread(target=self._write, args=(job,), daemon=True, name="rlrt-save")
            self._pace.writing()
            job.thread.start()
        else:
            self._write(job)
        self._seconds["time/save_s"] = job.stopped_s = self._clock() - begin
        if not later:
            self.wait()
        self._pace.resume()

    def boundary(self) -> dict[str, float]:
        """Look at a step's end whether a checkpoint is done, and return the seconds that are not logged yet.

        Raises:
            OSError, UserError: if the checkpoint could not be written.
        """
        if self._job is not None:
            outcomes = self._world.gather([self._job.outcome])
            if None not in outcomes or not {*outcomes} <= {None, DONE}:
                self.wait()
        seconds, self._seconds = self._seconds, {}
        return seconds

    def wait(self) -> None:
        """Wait until the checkpoint that is being written is complete.

        Raises:
            OSError, UserError: if it could not be written.
        """
        job = self._job
        if job is None:
            return
        begin = self._clock()
        if job.thread is not None:
            job.thread.join()
        outcomes = self._world.gather([job.outcome])
        self._job = None
        if job.error is not None:
            raise job.error
        for outcome in outcomes:
            if outcome is not None and outcome != DONE:
                raise raised(outcome)
        stopped = job.stopped_s + self._clock() - begin
        if job.thread is not None:
            self._seconds["time/save_background_s"] = job.seconds
        self._pace.saved(job.stopped_s + (job.seconds if job.thread is not None else 0.0))
        if self._world.main:
            size = amount(job.bytes)
            log.info(
                "%s: %s, written in %.1f s; training stood still for %.1f s", job.work.stem, size, job.seconds, stopped
            )

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None:
            self.wait()
            return
        if self._world.size > 1 or isinstance(error, Replaced) or not isinstance(error, Exception):
            self._hurry.set()  # another rank may be gone, the folder be another process's, or a person be in a hurry
        if self._job is not None and self._job.thread is not None:
            self._job.thread.join()

    def _contents(self, work: Path, step: int, pending: dict[str, Any] | None, later: bool) -> dict[str, Content]:
        """Return what this rank writes; tensors are copied to the host first if they are written later."""
        rank, size, model = self._world.rank, self._world.size, self._learner.policy.model
        rounded = self._dtype != torch.float32 and not adapters(model)
        held = shares(trainer_tensors(self._learner, weights=rounded), rank, size)
        if later:
            held = [replace(p, tensor=self._copied(p.name, p.tensor)) for p in held]
        files: dict[str, Content] = {f"{TRAINER}/shard-{rank + 1:05}-of-{size:05}.safetensors": held}
        copied = {p.name: p.tensor for p in held if p.offset is None}
        mine: dict[str, torch.Tensor] = {}
        places: dict[str, str] = {}
        writers, total = hub.writers(model, size), 0
        for owner, name, tensor in hub.shared_out(model, writers):
            places[name] = hub.weights_file(owner, writers)
            total += Piece(name, tensor, dtype=self._dtype).bytes
            if owner == rank and WEIGHTS + name in copied:
                mine[name] = copied[WEIGHTS + name]
            elif owner == rank:
                mine[name] = self._copied(f"model.{name}", tensor) if later else tensor
        if writers == 1:
            mine = hub.as_stored(model, mine)
        if mine:
            pieces = [Piece(name, tensor, dtype=self._dtype) for name, tensor in mine.items()]
            files[hub.weights_file(rank, writers)] = pieces
        if self._pinned:
            torch.cuda.synchronize()
        if self._world.main:
            files |= self._small_files(work, step, pending)
            if writers > 1:
                files[INDEX] = hub.index(places, total)
        return files

    def _copied(self, key: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return a copy in host memory; of a tensor on a GPU into pinned memory that later checkpoints use again."""
        tensor = tensor.detach()
        if tensor.device.type == "cpu":
            return tensor.clone()
        if key not in self._pinned:
            self._pinned[key] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return self._pinned[key].copy_(tensor, non_blocking=True)

    def _small_files(self, work: Path, step: int, pending: dict[str, Any] | None) -> dict[str, Content]:
        """Return the files of rank 0 that are no tensors; those of the model are made once and kept as bytes."""
        if not self._texts:
            place = work / TEXTS  # apart from what the other ranks already write
            hub.write_texts(self._learner.policy.model, self._learner.policy.tokenizer, place, self._dtype)
            found = [p for p in place.rglob("*") if p.is_file()]
            self._texts = {str(p.relative_to(place)): p.read_bytes() for p in found}
            shutil.rmtree(place)
        values = copy.deepcopy(trainer_values(self._learner, step))
        values |= {} if pending is None else {"pending": pending}
        return {**self._texts, f"{TRAINER}/{STATE}": lambda: json.dumps(values, indent=1).encode()}

    def _write(self, job: Job) -> None:
        """Write this rank's files and tell the others; on rank 0 also wait for theirs and rename the folder."""
        begin, rank = self._clock(), self._world.rank
        name = f"save/{job.work.name}"
        try:
            for file, content in job.files.items():
                job.digests[file] = written(job.work / file, content, self._hurry.is_set)
                job.bytes += (job.work / file).stat().st_size
            self._world.note(name, json.dumps({"digests": job.digests, "bytes": job.bytes}))
            if self._world.main:
                self._collect(job, name)
                refuse_replaced(self._folder.parent / LEASE)
                checkpoints.commit(job.work, job.digests, self._train.keep_last, job.best)
        except FileNotFoundError as error:
            job.error = error if rank == 0 else unseen(rank, job.work)
        except BaseException as error:
            job.error = error
        if job.error is not None:
            with contextlib.suppress(RuntimeError):  # the store is gone with rank 0
                self._world.note(name, json.dumps({"error": described(job.error)}))
        job.files.clear()
        job.seconds = self._clock() - begin

    def _collect(self, job: Job, name: str) -> None:
        """Wait for the digests of the other ranks.

        Raises:
            OSError: if one of them failed.
            RankLost: if one of them is gone.
            Stopped: if the run ends before they come.
        """
        missing = set(range(1, self._world.size))
        while missing:
            notes = self._world.notes(name)
            for rank in missing & notes.keys():
                note: Mapping[str, Any] = json.loads(notes[rank])
                if "error" in note:
                    raise raised(tuple(note["error"]))
                job.digests |= note["digests"]
                job.bytes += note["bytes"]
                missing.remove(rank)
            if missing and (lost := self._world.lost()):
                raise RankLost(lost)
            if missing and self._hurry.wait(POLL_S):
                raise Stopped(job.work)


def written(path: Path, content: Content, stop: Callable[[], bool]) -> str:
    """Write a file and return its SHA-256."""
    if isinstance(content, list):
        return write_pieces(path, content, stop)
    if not path.parent.is_dir():  # some tokenizers have files in a folder
        path.parent.mkdir()
    return write_bytes(path, [content() if callable(content) else content], stop)


def unseen(rank: int, work: Path) -> UserError:
    """Return the error of a rank that does not see the folder that rank 0 made."""
    return UserError(
        f"hydra.run.dir: process {rank} on {socket.gethostname()} does not see {work}, which process 0 made; give a folder on "
        "a disk that all nodes share."
    )


def shares(tensors: Mapping[str, Any], rank: int, size: int) -> list[Piece]:
    """Return the parts of tensors that a rank writes: its own shards, and a share of those that all ranks hold whole."""
    whole = [n for n, t in tensors.items() if not is_share(t)]
    mine = {whole[i] for i in parts([tensors[n].numel() for n in whole], size)[rank]}
    return [p for n, t in tensors.items() if n in mine or is_share(t) for p in pieces_of(n, t)]
