"""``python -m rlrt.run``: compose a config, run it. Hydra's own options (-m, --cfg job, --help) work as everywhere."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from rlrt.distributed.rank import is_main
from rlrt.errors import RankLost, UserError, nearest
from rlrt.folder import STAYS
from rlrt.hydra_setup import CONFIG, GROUPS, SWEEPS, composed_keys, hydra_keys, register
from rlrt.identity import readable, sweep_hash
from rlrt.lease import LEASE, Held, hold
from rlrt.rerun import expand
from rlrt.stop import StopFlag

log = logging.getLogger("rlrt")


class Codes:
    """Exit codes of the jobs of this process: one job's failure never takes the next one down."""

    def __init__(self) -> None:
        self.codes: list[int] = []

    def worst(self) -> int:
        """0 where all went well."""
        return max(self.codes, default=0)


def job(config: Any, codes: Codes) -> float | None:
    """One run from a composed config; returns its final avg@k, for sweepers that search.

    Errors end up in ``codes`` and on standard error: one sentence for what the user can mend (2), a traceback, also in
    the folder's ``log.txt``, for anything else (1). A run that a signal ended early, after saving, gives 128 + signal.
    """
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    path = Path(hydra.runtime.output_dir)
    main = is_main()
    if not main:
        keep_out_of_the_log(path)
    if path.resolve() == Path.cwd():
        print("error: hydra.run.dir: expected a folder of the run's own, got the current one.", file=sys.stderr)
        codes.codes.append(2)
        return None
    names = {k: str(v) for k, v in hydra.runtime.choices.items() if "/" not in k and v is not None}
    to_terminal = logging.StreamHandler(sys.stderr)
    to_terminal.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    to_terminal.setLevel(logging.WARNING)
    log.addHandler(to_terminal)
    try:
        return run_one(config, path, names, list(hydra.overrides.task), codes)
    except UserError as error:
        if main:  # all processes of a run are told the same
            print(f"error: {error}", file=sys.stderr)
            forget_empty(path)
        codes.codes.append(2)
    except RankLost as error:
        print(f"error: {error}; the same command goes on from what the run saved in {path}", file=sys.stderr)
        codes.codes.append(1)
    except Exception:
        log.exception("the run in %s failed; what it saved is still there, and the same command goes on from it", path)
        codes.codes.append(1)
    finally:
        log.removeHandler(to_terminal)
    return None


def run_one(config: Any, path: Path, names: dict[str, str], overrides: list[str], codes: Codes) -> float | None:
    """Check, run, and say how it went."""
    from rlrt.config.load import load

    settings = load(config, names, overrides)
    from rlrt.execute import closing_words, execute

    main = is_main()
    with StopFlag() as stop, leased(path) if main else nullcontext():
        summary = execute(settings, path, lambda line: print(line, flush=True), stop.requested)
    if main:
        print(closing_words(settings, path, summary), flush=True)
    if summary["state"] == "interrupted" and stop.signal is not None:
        codes.codes.append(128 + stop.signal)
    value = summary.get("final", {}).get(f"eval/avg_at_{settings.eval.samples_per_prompt}")
    return None if value is None else float(value)


def keep_out_of_the_log(path: Path) -> None:
    """Another process writes this run's ``log.txt``; this one's file is made once it has something to say."""
    for handler in list(logging.getLogger().handlers):
        if isinstance(handler, logging.FileHandler) and Path(handler.baseFilename).parent == path.resolve():
            logging.getLogger().removeHandler(handler)
            handler.close()
            own = logging.FileHandler(path / f"log.rank{os.environ['RANK']}.txt", delay=True)
            own.setFormatter(handler.formatter)
            own.setLevel(logging.WARNING)
            logging.getLogger().addHandler(own)


@contextmanager
def leased(path: Path) -> Iterator[None]:
    """Hold the lease of a run's folder.

    Raises:
        UserError: if another process runs it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with hold(path / LEASE):
            yield
    except Held as held:
        raise UserError(
            f"hydra.run.dir: {path} is being run by process {held.who.get('pid')} on {held.who.get('host')}; wait for it, or "
            "give another folder as hydra.run.dir=FOLDER."
        ) from None


def forget_empty(path: Path) -> None:
    """Remove the folder of a run that never began (Hydra makes it, with a log, before anything is checked)."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler) and Path(handler.baseFilename).parent == path.resolve():
            handler.close()
    if path.is_dir() and {p.name for p in path.iterdir()} <= set(STAYS):
        for name in STAYS:
            (path / name).unlink(missing_ok=True)
        for folder in (path, path.parent, path.parent.parent):  # outputs/runs/NAME; only what is empty goes
            if any(folder.iterdir()) or folder == Path.cwd():
                break
            folder.rmdir()


def explain(error: Exception, arguments: Sequence[str]) -> str:
    """Hydra's complaint as one sentence with the nearest valid name."""
    text = str(error)
    if match := re.search(r"Could not override '([^']+)'", text):
        name = match[1]
        return f"{name}: there is no such key.{nearest(name, known_names(arguments))}"
    if match := re.search(r"Ambiguous value for argument '([^']+)'", text):
        return f"{match[1]}: several values make a sweep; add -m, or write a list as [a,b]."
    if match := re.search(r"Could not find '([^']+?)/([^'/]+)'", text):
        whole = f"{match[1]}/{match[2]}"
        group = whole.split("/")[0] if whole.split("/")[0] in GROUPS else match[1]  # experiment=paper/x is one choice
        name = whole.removeprefix(f"{group}/")
        options = [o for o in re.findall(r"^\t(\S+)$", text, re.MULTILINE) if "/" not in name]
        nested = [str(p.relative_to(CONFIG / group).with_suffix("")) for p in (CONFIG / group).rglob("[!_]*.yaml")]
        known = sorted({*nested, *(o for o in options if o[0] != "_")})
        return f"{group}={name}: there is no such {group}.{nearest(name, known)}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    typed = next((a for a in arguments if a in text), "")
    said = " ".join(line for line in lines[:2] if not line.endswith(":")) or type(error).__name__
    return f"{typed}: {said}" if typed and not said.startswith(typed) else said


def known_names(arguments: Sequence[str]) -> list[str]:
    """Every name that could have been meant: keys, config groups, and the launcher's and sweeper's keys."""
    from hydra.errors import HydraException

    try:
        keys = composed_keys(arguments)
    except HydraException:
        keys = composed_keys([])
    return [*keys, *GROUPS, *hydra_keys(arguments)]


def guarded(action: Callable[[], Any], arguments: Sequence[str]) -> int:
    """Run ``action``; errors that a user can mend become one sentence on standard error and an exit code.

    Returns:
        0; 1 for what Hydra refuses, 2 for what rlrt refuses.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        action()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (HydraException, OmegaConfBaseException) as error:
        print(f"error: {explain(error, arguments)}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.filename is None or ("outputs" not in str(error.filename) and not any("dir=" in a for a in arguments)):
            raise
        key = "hydra.sweep.dir" if {"-m", "--multirun"} & set(sys.argv) else "hydra.run.dir"
        print(
            f"error: {key}: {error.filename} cannot be written ({error.strerror}); give a folder that can, as {key}=FOLDER.",
            file=sys.stderr,
        )
        return 2
    return 0


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str], str | None]:
    """Overrides, ``--config-dir`` folders and the ``--cfg`` kind of a multirun's command line.

    Raises:
        UserError: for an option of Hydra's that a sweep here does not take.
    """
    overrides: list[str] = []
    folders: list[str] = []
    kind: str | None = None
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        name, _, value = word.partition("=") if word.startswith("--") else (word, "", "")
        if word in ("-m", "--multirun"):
            continue
        if name in ("--config-dir", "-cd", "--cfg", "-c"):
            value = value or (rest.pop(0) if rest else "")
            if name in ("--cfg", "-c") and value != "job":
                raise UserError(f"{name}: a sweep (-m) shows the configs of its jobs as --cfg job, got {value!r}.")
            if name in ("--config-dir", "-cd") and not Path(value or "/nowhere").is_dir():
                raise UserError(f"{name}: expected a folder of config groups, got {value!r}.")
            folders, kind = (folders, value) if name in ("--cfg", "-c") else ([*folders, value], kind)
        elif word.startswith("-"):
            raise UserError(f"{word}: a sweep (-m) takes overrides, --cfg job and --config-dir, not this option.")
        else:
            overrides.append(word)
    return overrides, folders, kind


def multirun(arguments: Sequence[str], codes: Codes) -> None:
    """``-m``: run a sweep, or show the configs of its jobs."""
    from rlrt.sweep.command import configs, sweep

    overrides, folders, kind = split_arguments(arguments)
    if kind is None:
        codes.codes.append(sweep(overrides, folders))
        return
    for number, (typed, config) in enumerate(configs(overrides, folders)):
        print(f"# job {number}: {typed}\n{config}")


def main() -> None:
    """The command."""
    import hydra

    register()
    codes = Codes()
    arguments: list[str] = []
    refused = guarded(lambda: arguments.extend(expand(sys.argv[1:])), sys.argv[1:])
    if refused:
        sys.exit(refused)
    sys.argv[1:] = arguments  # hydra.main reads it
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach ``guarded`` instead of Hydra's own printing
    overrides = [a for a in arguments if not a.startswith("-")]
    os.environ["RLRT_SWEEP_NAME"] = f"{readable(overrides, 'sweep')}-{sweep_hash(overrides)}"

    def task(config: Any) -> float | None:
        return job(config, codes)

    study = next((a for a in overrides if a.startswith("+sweep=")), None)
    several = bool({"-m", "--multirun"} & set(arguments))
    known = study is not None and (SWEEPS / "sweep" / f"{study.removeprefix('+sweep=')}.yaml").is_file()
    if known and not several and not {"--cfg", "-c", "--help", "--info", "-i"} & set(arguments):
        print(f"error: {study}: a study is run with -m: python -m rlrt.run -m {' '.join(overrides)}", file=sys.stderr)
        sys.exit(2)
    decorated = hydra.main(version_base="1.3", config_path=str(CONFIG), config_name="config")(task)
    sys.exit(guarded((lambda: multirun(arguments, codes)) if several else decorated, arguments) or codes.worst())


if __name__ == "__main__":
    main()
