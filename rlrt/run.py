"""``python -m rlrt.run``: compose a config, run it. Hydra's own options (-m, --cfg job, --help) work as everywhere."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rlrt.errors import UserError, nearest
from rlrt.hydra_setup import CONFIG, composed, composed_keys, register
from rlrt.identity import readable, sweep_hash
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
    names = {k: str(v) for k, v in hydra.runtime.choices.items() if "/" not in k and v is not None}
    to_terminal = logging.StreamHandler(sys.stderr)
    to_terminal.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    to_terminal.setLevel(logging.WARNING)
    log.addHandler(to_terminal)
    try:
        return run_one(config, path, names, list(hydra.overrides.task), codes)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        forget_empty(path)
        codes.codes.append(2)
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
    from rlrt.build import closing_words, execute

    with StopFlag() as stop:
        summary = execute(settings, path, lambda line: print(line, flush=True), stop.requested)
    print(closing_words(settings, path, summary), flush=True)
    if summary["state"] == "interrupted" and stop.signal is not None:
        codes.codes.append(128 + stop.signal)
    value = summary.get("final", {}).get(f"eval/avg_at_{settings.eval.samples_per_prompt}")
    return None if value is None else float(value)


def forget_empty(path: Path) -> None:
    """Remove the folder of a run that never began (Hydra makes it, with a log, before anything is checked)."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.FileHandler) and Path(handler.baseFilename).parent == path.resolve():
            handler.close()
    if path.is_dir() and {p.name for p in path.iterdir()} <= {"log.txt"}:
        (path / "log.txt").unlink(missing_ok=True)
        path.rmdir()


def explain(error: Exception, arguments: Sequence[str]) -> str:
    """Hydra's complaint as one sentence with the nearest valid name."""
    text = str(error)
    if match := re.search(r"Could not override '([^']+)'", text):
        name = match[1]
        return f"{name}: there is no such key.{nearest(name, composed_keys(arguments))}"
    if match := re.search(r"Could not find '([^']+?)/([^'/]+)'", text):
        group, name = match[1], match[2]
        options = re.findall(r"^\t(\S+)$", text, re.MULTILINE)
        return f"{group}={name}: there is no such {group}.{nearest(name, [o for o in options if o[0] != '_'])}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines[:2]) or type(error).__name__


def guarded(action: Callable[[], Any], arguments: Sequence[str]) -> int:
    """Run ``action``; errors that a user can mend become one sentence on standard error and an exit code.

    Returns:
        0; 1 for what Hydra refuses, 2 for a folder that cannot be written.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        action()
    except (HydraException, OmegaConfBaseException) as error:
        print(f"error: {explain(error, arguments)}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.filename is None or ("outputs" not in str(error.filename) and not any("dir=" in a for a in arguments)):
            raise
        print(
            f"error: hydra.run.dir: {error.filename} cannot be written ({error.strerror}); give a folder that can, as "
            "hydra.run.dir=FOLDER.",
            file=sys.stderr,
        )
        return 2
    return 0


def show_sweep(arguments: Sequence[str]) -> None:
    """``-m ... --cfg job``: the config of every job of a grid (Hydra itself shows single runs only)."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    kind = arguments[arguments.index("--cfg") + 1]
    typed = [a for a in arguments if not a.startswith("-") and a != kind]
    study = [a for a in typed if a.startswith("+sweep=")]
    params = composed(study, with_hydra=True).hydra.sweeper.get("params") or {}
    names = {a.split("=")[0].lstrip("+") for a in typed}
    parsed = OverridesParser.create().parse_overrides(typed + [f"{k}={v}" for k, v in params.items() if k not in names])
    for number, job_overrides in enumerate(BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]):
        config = composed(job_overrides)
        print(f"# job {number}: {' '.join(job_overrides)}")
        print(OmegaConf.to_yaml(config))


def main() -> None:
    """The command."""
    import hydra

    register()
    arguments = sys.argv[1:]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach ``guarded`` instead of Hydra's own printing
    overrides = [a for a in arguments if not a.startswith("-")]
    os.environ["RLRT_SWEEP_NAME"] = f"{readable(overrides, 'sweep')}-{sweep_hash(overrides)}"
    codes = Codes()

    def task(config: Any) -> float | None:
        return job(config, codes)

    if "--cfg" in arguments and {"-m", "--multirun"} & set(arguments):
        sys.exit(guarded(lambda: show_sweep(arguments), arguments))
    decorated = hydra.main(version_base="1.3", config_path=str(CONFIG), config_name="config")(task)
    sys.exit(guarded(decorated, arguments) or codes.worst())


if __name__ == "__main__":
    main()
