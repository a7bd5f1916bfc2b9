"""``python -m rlrt.run``: compose a config and run it. Hydra's own options (-m, --cfg job, --help) work as usual."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rlrt.config.compose import register, with_tuned
from rlrt.config.overrides import mapping_opened
from rlrt.config.refused import guarded, refuse_out_of_place
from rlrt.config.rerun import expand
from rlrt.distributed.rank import is_main, processes
from rlrt.errors import NotMet, RankLost, UserError, brief
from rlrt.execution.stop import StopFlag
from rlrt.paths import CONFIG, SWEEPS
from rlrt.records.files import resolved
from rlrt.records.folder import BEGINNINGS, forget_empty
from rlrt.records.lease import leased
from rlrt.records.names import name_sweep
from rlrt.records.secrets import masked, to_terminal
from rlrt.records.storage import loss
from rlrt.records.streams import LogFile, mask_streams

log = logging.getLogger("rlrt")


class Codes:
    """Exit codes of this process's jobs, collected so that a failed job does not stop the next one."""

    def __init__(self) -> None:
        self.codes: list[int] = []

    def worst(self) -> int:
        """Return the largest exit code; 0 if every job succeeded."""
        return max(self.codes, default=0)


def job(config: Any, codes: Codes) -> float | None:
    """Run one composed config; return its final avg@k, for sweepers that search.

    An error adds an exit code to ``codes`` and is printed to standard error: one sentence for a user error (2), a traceback,
    also in the folder's ``log.txt``, for any other error (1). A run that saved and ended on a signal gives 128 + signal.
    """
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    hydra = HydraConfig.get()
    path = BEGINNINGS[-1].path
    main = is_main()
    if not main:
        log_to_rank_file(Path(hydra.runtime.output_dir), path)
    if resolved(path) == Path.cwd():
        print("error: hydra.run.dir: expected a folder of the run's own, got the current one.", file=sys.stderr)
        codes.codes.append(2)
        return None
    names = {k: str(v) for k, v in hydra.runtime.choices.items() if "/" not in k and v is not None}
    handler = to_terminal()
    log.addHandler(handler)
    try:
        refuse_several_processes(hydra.launcher)
        typed: Any = OmegaConf.to_container(hydra.overrides.task, resolve=False)  # interpolations stay text
        return run_one(config, path, names, typed, codes)
    except UserError as error:
        if main or isinstance(error, NotMet):  # all ranks get any other error alike
            print(f"error: {brief(masked(str(error)))}", file=sys.stderr)
        if main:
            forget_empty(path)
        codes.codes.append(2)
    except RankLost as error:
        print(f"error: {error}; the same command resumes from the newest checkpoint in {path}", file=sys.stderr)
        codes.codes.append(1)
    except Exception as error:
        lost = loss(error, path)
        if lost is not None:
            print(f"error: {brief(masked(str(lost)))}", file=sys.stderr)
            codes.codes.append(2)
            return None
        log.exception(
            "the run in %s failed; its checkpoints remain, and the same command resumes from the newest one", path
        )
        codes.codes.append(1)
    finally:
        log.removeHandler(handler)
    return None


def refuse_several_processes(launcher: Any) -> None:
    """Refuse a launcher that wants several processes (``cluster=h100x8``) where nobody would start them.

    Raises:
        UserError: saying how they are started.
    """
    wanted = int(launcher.get("nodes", 1)) * int(launcher.get("tasks_per_node", 1))
    if wanted > processes() and processes() == 1:
        raise UserError(
            f"hydra.launcher.tasks_per_node: {wanted} processes are asked for, and a single run is one; add -m, or start it by "
            f"torchrun --standalone --nproc-per-node={wanted} -m rlrt.run ..., or choose another cluster=NAME."
        )


def run_one(config: Any, path: Path, names: dict[str, str], overrides: list[str], codes: Codes) -> float | None:
    """Check a config, run it, and print how it ended; return the final avg@k."""
    from rlrt.config.load import load

    settings = load(config, names, overrides)
    from rlrt.execution.execute import closing_words, execute

    main = is_main()
    with StopFlag() as stop, leased(path) if main else nullcontext():
        summary = execute(
            settings, path, lambda line: print(line, flush=True), stop.requested, time_left=stop.time_left
        )
    if main:
        print(closing_words(settings, path, summary), flush=True)
    if summary["state"] == "interrupted" and stop.signal is not None:
        codes.codes.append(128 + stop.signal)
    value = summary.get("final", {}).get(f"eval/avg_at_{settings.eval.samples_per_prompt}")
    return None if value is None else float(value)


def log_to_rank_file(hydras: Path, path: Path) -> None:
    """Log this rank to its own file in the run's folder, created at its first warning, since the main rank writes ``log.txt``.

    Args:
        hydras: the folder in which Hydra would log this rank.
        path: the run's folder.
    """
    for handler in list(logging.getLogger().handlers):
        if isinstance(handler, logging.FileHandler) and Path(handler.baseFilename).parent == resolved(hydras):
            logging.getLogger().removeHandler(handler)
            handler.close()
            rank_handler = LogFile(str(path / f"log.rank{os.environ['RANK']}.txt"))
            rank_handler.setFormatter(handler.formatter)
            rank_handler.setLevel(logging.WARNING)
            logging.getLogger().addHandler(rank_handler)


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str], str | None]:
    """Split a multirun's command line into overrides, ``--config-dir`` folders and the value of ``--cfg``.

    Raises:
        UserError: for an option of Hydra's that a sweep does not support.
    """
    overrides: list[str] = []
    folders: list[str] = []
    kind: str | None = None
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        name, _, value = argument.partition("=") if argument.startswith("--") else (argument, "", "")
        if argument in ("-m", "--multirun"):
            continue
        if name in ("--config-dir", "-cd", "--cfg", "-c"):
            value = value or (rest.pop(0) if rest else "")
            if name in ("--cfg", "-c") and value != "job":
                raise UserError(f"{name}: a sweep (-m) shows the configs of its jobs as --cfg job, got {value!r}.")
            if name in ("--config-dir", "-cd") and not Path(value or "/nowhere").is_dir():
                raise UserError(f"{name}: expected a folder of config groups, got {value!r}.")
            folders, kind = (folders, value) if name in ("--cfg", "-c") else ([*folders, value], kind)
        elif argument.startswith("-"):
            raise UserError(f"{argument}: a sweep (-m) takes overrides, --cfg job and --config-dir, not this option.")
        else:
            overrides.append(argument)
    return overrides, folders, kind


def multirun(arguments: Sequence[str], codes: Codes) -> None:
    """Run a sweep (``-m``), or print the configs of its jobs (``--cfg job``)."""
    from rlrt.sweep.command import configs, sweep

    overrides, folders, kind = split_arguments(arguments)
    if kind is None:
        codes.codes.append(sweep(overrides, folders))
        return
    for number, (typed, config) in enumerate(configs(overrides, folders)):
        print(f"# job {number}: {typed}\n{config}")


def main() -> None:
    """Run the command line: one run, a sweep, or one of Hydra's own options."""
    mask_streams()
    import hydra

    register()
    codes = Codes()
    arguments: list[str] = []

    def read() -> None:
        arguments.extend(expand(sys.argv[1:]))
        refuse_out_of_place(arguments)

    refused = guarded(read, sys.argv[1:])
    if refused:
        sys.exit(refused)
    several = bool({"-m", "--multirun"} & set(arguments))
    arguments = arguments if several else [mapping_opened(a) for a in with_tuned(arguments)]
    sys.argv[1:] = arguments  # hydra.main reads sys.argv
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach ``guarded`` instead of Hydra's own printing
    overrides = [a for a in arguments if not a.startswith("-")]
    name_sweep(overrides)

    def task(config: Any) -> float | None:
        return job(config, codes)

    study = next((a for a in overrides if a.startswith("+sweep=")), None)
    is_study = study is not None and (SWEEPS / "sweep" / f"{study.removeprefix('+sweep=')}.yaml").is_file()
    if is_study and not several and not {"--cfg", "-c", "--help", "--info", "-i"} & set(arguments):
        sentence = f"error: {study}: a study is run with -m: python -m rlrt.run -m {' '.join(overrides)}"
        print(brief(masked(sentence)), file=sys.stderr)
        sys.exit(2)
    decorated = hydra.main(version_base="1.3", config_path=str(CONFIG), config_name="config")(task)
    sys.exit(guarded((lambda: multirun(arguments, codes)) if several else decorated, arguments) or codes.worst())


if __name__ == "__main__":
    main()
