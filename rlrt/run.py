"""``python -m rlrt.run``: compose a config, run it. Hydra's own options (-m, --cfg job, --help) work as everywhere."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rlrt.errors import UserError, nearest
from rlrt.hydra_setup import CONFIG, composed_keys, register
from rlrt.identity import readable, sweep_hash

log = logging.getLogger("rlrt")


def job(config: Any) -> float | None:
    """One run from a composed config; returns its final avg@k, for sweepers that search.

    Raises:
        UserError: for anything the user can mend.
        Interrupted: when a signal ended it early, after saving.
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
        from rlrt.config.load import load

        settings = load(config, names)
        from rlrt.build import closing_words, execute

        stop = StopFlag()
        with stop:
            summary = execute(settings, path, lambda line: print(line, flush=True), stop.requested)
        print(closing_words(settings, path, summary), flush=True)
    except UserError:
        forget_empty(path)
        raise
    finally:
        log.removeHandler(to_terminal)
    if summary["state"] == "interrupted" and stop.signal is not None:
        raise Interrupted(stop.signal)
    value = summary.get("final", {}).get(f"eval/avg_at_{settings.eval.samples_per_prompt}")
    return None if value is None else float(value)


class Interrupted(SystemExit):
    """The run saved and ended early because of a signal; exit code 128 + signal."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class StopFlag:
    """Turns SIGINT, SIGTERM and SIGUSR2 into a request to save at the next step boundary; a second one acts at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def requested(self) -> bool:
        """Whether a signal came."""
        return self.signal is not None

    def __enter__(self) -> StopFlag:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: object) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number
        print(f"\n{signal.Signals(number).name}: saving at the end of this step; once more to stop at once", flush=True)


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
        if error.filename is None or "outputs" not in str(error.filename) and not any("dir=" in a for a in arguments):
            raise
        print(
            f"error: hydra.run.dir: {error.filename} cannot be written ({error.strerror}); give a folder that can, as "
            "hydra.run.dir=FOLDER.",
            file=sys.stderr,
        )
        return 2
    return 0


def main() -> None:
    """The command."""
    import hydra

    register()
    arguments = sys.argv[1:]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach ``guarded`` instead of Hydra's own printing
    overrides = [a for a in arguments if not a.startswith("-")]
    os.environ["RLRT_SWEEP_NAME"] = f"{readable(overrides, 'sweep')}-{sweep_hash(overrides)}"
    decorated = hydra.main(version_base="1.3", config_path=str(CONFIG), config_name="config")(job)
    sys.exit(guarded(decorated, arguments))


if __name__ == "__main__":
    main()
