"""``python -m rlrt.MODULE`` in a fork of this process: all that a process of its own has, without importing everything again.

A fork has its own exit code, streams, folder, environment and signals. What it does not show is that the imports alone work and
say nothing, and what submitit does: other tests start interpreters for that (test_command.py, sweep/test_driver.py).
"""

from __future__ import annotations

import atexit
import importlib
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra

import rlrt.sweep.ending
from rlrt.sweep.launchers import LocalLauncher


def forked(
    module: str, arguments: Sequence[str], cwd: Path, timeout: float = 300, report: bool = False, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; jobs that it starts on this machine are forks too.

    Args:
        report: draw the report that ends a sweep; its figures cost as much as a sweep of two small runs.

    Raises:
        subprocess.TimeoutExpired: if it takes longer than ``timeout`` seconds.
    """
    import_what_runs_need()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        pid = os.fork()
        if pid == 0:
            os._exit(_command(module, arguments, cwd, environment, out.fileno(), err.fileno(), report))
        code = _wait(pid, timeout)
        for file in (out, err):
            file.seek(0)
        if code is None:
            raise subprocess.TimeoutExpired([module, *arguments], timeout, out.read(), err.read())
        return subprocess.CompletedProcess([module, *arguments], code, out.read(), err.read())


def import_what_runs_need() -> None:
    """Once, before a fork, instead of in each of them."""
    for name in (
        "rlrt.execution.execute",
        "rlrt.records.mlflow",
        "mlflow",
        "transformers.models.qwen3.modeling_qwen3",
        "scipy.stats",
        "matplotlib.figure",
    ):
        importlib.import_module(name)


def _wait(pid: int, timeout: float) -> int | None:
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def _command(
    module: str, arguments: Sequence[str], cwd: Path, environment: dict[str, str], out: int, err: int, report: bool
) -> int:
    """In the child: become what ``python -m`` would be, as far as a test's process can."""
    code: object = 1
    try:
        _like_a_fresh_process(cwd, environment, out, err)
        LocalLauncher.submit = submit_forks  # type: ignore[method-assign]
        if not report:
            rlrt.sweep.ending.closing_report = lambda *_: None
        sys.argv = [f"rlrt.{module}", *arguments]
        code = main_of(module)()
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    if isinstance(code, str):
        os.write(err, f"{code}\n".encode())
        return 1
    return code if isinstance(code, int) else 0


def main_of(module: str) -> Callable[[], object]:
    """The function that ``python -m rlrt.MODULE`` calls, of a module or of a folder."""
    found = importlib.import_module(f"rlrt.{module}")
    main: Callable[[], object] = (
        found if hasattr(found, "main") else importlib.import_module(f"{found.__name__}.__main__")
    ).main
    return main


def _like_a_fresh_process(cwd: Path, environment: dict[str, str], out: int, err: int) -> None:
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(os.dup(n), mode) for n, mode in ((0, "r"), (1, "w"), (2, "w")))
    atexit._clear()
    os.setsid()
    os.chdir(cwd)
    sys.path.insert(0, str(cwd))
    for name in [n for n in os.environ if n.startswith("HYDRA")]:
        del os.environ[name]
    os.environ.update(environment)
    warnings.resetwarnings()
    warnings.simplefilter("ignore")
    GlobalHydra.instance().clear()
    for handler in list(logging.getLogger().handlers):
        logging.getLogger().removeHandler(handler)
    logging.getLogger().setLevel(logging.WARNING)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


class Fork:
    """A job that is a fork, as far as a launcher looks at it."""

    def __init__(self, work: Callable[[str], object], folder: Path) -> None:
        self._pid, self._done = os.fork(), False
        if self._pid == 0:
            forget_connections()
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                work(str(folder))
            finally:
                os._exit(0)

    def done(self) -> bool:
        self._done = self._done or os.waitpid(self._pid, os.WNOHANG)[0] != 0
        return self._done


def submit_forks(self: LocalLauncher, folders: Sequence[Path], sweep: Path, name: str) -> dict[Path, str]:
    """Instead of ``LocalLauncher.submit``: no submitit, no new interpreters."""
    import_what_runs_need()
    self._running |= {folder: Fork(self.work, folder) for folder in folders}
    return {}


def forget_connections() -> None:
    """A SQLite connection must not be used on the other side of a fork."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    for engine in SqlAlchemyStore._engine_map.values():
        engine.dispose(close=False)
