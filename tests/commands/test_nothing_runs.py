"""A planted folder, and every command that reads it, in a process whose audit hook writes down what is imported, opened,
started and connected to: nothing of the folder is code, and nothing in it names a place outside."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rlrt.execution.execute import execute
from tests.helpers import ONE_STEP, settings

WATCHED = """
import json, os, sys
log, planted = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT), os.path.realpath(sys.argv[2])
NAMES = ("import", "exec", "subprocess.Popen", "os.exec", "os.system", "os.posix_spawn", "socket.connect", "pickle.find_class",
         "os.kill", "open", "shutil.rmtree", "os.remove", "os.rename", "ctypes.dlopen", "socket.getaddrinfo", "sqlite3.connect")
def hook(event, arguments):
    if event in NAMES:
        text = " ".join(str(getattr(a, "co_filename", a)) for a in arguments)
        if event == "open" and not (set("wax+") & set(str(arguments[1] or "")) or (arguments[2] or 0) & 3):
            return
        os.write(log, (json.dumps([event, text]) + "\\n").encode())
sys.addaudithook(hook)
sys.argv = sys.argv[3:]
import runpy
try:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
except BaseException as error:
    if not isinstance(error, SystemExit):
        raise
    sys.exit(error.code)
"""
PLANTED = "planted_code"
COMMANDS = {
    "report": ("rlrt.report", "gift"),
    "status": ("rlrt.status", "gift"),
    "runs": ("rlrt.runs", "gift", "--where", "train.steps=1", "--columns", "data._target_"),
    "diff": ("rlrt.runs", "--diff", "gift/job", "gift/job"),
    "cancel": ("rlrt.cancel", "gift"),
    "sync": ("rlrt.sync", "gift"),
    "evaluate": ("rlrt.evaluate", "gift/job"),
    "from": ("rlrt.run", "+from=gift/job", "train.steps=2"),
}


@pytest.fixture(scope="module")
def gift(tmp_path_factory):
    """A sweep that names code, a pickle, a server, a store, a process and files elsewhere, wherever a text may stand."""
    root = tmp_path_factory.mktemp("planted")
    execute(
        settings("method=rlrt", *ONE_STEP, "tracking=none"), root / "gift" / "job", print, lambda: False, progress=False
    )
    job, code = root / "gift" / "job", f"{PLANTED}.Task"
    (root / f"{PLANTED}.py").write_text("class Task: pass\n")
    (root / "sitecustomize.py").write_text("")
    (job / "evil.pkl").write_bytes(pickle.dumps(subprocess.Popen))
    for name in ("job_submitted.pkl", "job_result.pkl"):
        (root / "gift" / "submitit").mkdir(exist_ok=True)
        shutil.copy(job / "evil.pkl", root / "gift" / "submitit" / name)
    import yaml

    plain = yaml.safe_load((job / "config.yaml").read_text())
    plain["data"] |= {"_target_": code, "verifier": code}
    plain["engine"]["_target_"] = code
    plain["method"]["credit"] = code
    plain["tracking"] |= {"uri": f"sqlite:///{root}/made/by/gift.db", "artifacts": f"{root}/made/files"}
    (job / "config.yaml").write_text(yaml.safe_dump(plain))
    spec = {"overrides": ["method=rlrt", f"data._target_={code}"], "plain": plain, "choices": {"data": "../../evil"}}
    spec |= {"identity": "x", "slurm_id": "--signal=KILL", "slurm_name": "-u root", "tags": {"rlrt.sweep": "s"}}
    (job / "job.json").write_text(json.dumps(spec))
    (job / "summary.json").write_text(json.dumps({"state": "running", "mlflow_complete": False}))
    host = socket.gethostname()
    for lease in (job / "lease", root / "gift" / "driver"):
        lease.with_suffix(".json").write_text(json.dumps({"pid": -1, "host": host}))
        lease.with_suffix(".lock").write_text("")
    tracking = plain["tracking"] | {"uri": "http://127.0.0.1:9"}
    (root / "gift" / "sweep.json").write_text(
        json.dumps({"mlflow_run_id": "a" * 32, "tracking": tracking, "key": "' OR ''='"})
    )
    (root / "gift" / "analysis").mkdir()
    (root / "gift" / "analysis" / "analysis_x.svg").write_text("<svg onload='x'/>")
    return root / "gift"


def events_of(gift, tmp_path, module, *arguments):
    """What a command does in a copy of the planted folder: (event, text) of the audit hook, and the folder."""
    work, heard = tmp_path / "work", tmp_path / "heard"
    shutil.copytree(gift.parent, work)
    root = Path(__file__).parents[2]
    environment = {
        **os.environ,
        "PYTHONPATH": f"{root}:{work}",
        "MLFLOW_TRACKING_TOKEN": "secret",
        "HF_HUB_OFFLINE": "1",
    }
    environment |= {"HOME": str(tmp_path), "MPLCONFIGDIR": str(tmp_path / "mpl"), "PYTHONDONTWRITEBYTECODE": "1"}
    words = [sys.executable, "-c", WATCHED, str(heard), str(work), module, *arguments]
    done = subprocess.run(words, cwd=work, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    return [json.loads(line) for line in heard.read_text().splitlines()], work


def test_the_hook_hears_the_code_on_request(gift, tmp_path):
    """Else the test below could not fail."""
    events, _ = events_of(gift, tmp_path, "rlrt.evaluate", "gift/job", "--trust")
    assert any(event == "exec" and PLANTED in text for event, text in events)


@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_of_a_planted_folder_runs(gift, tmp_path, command):
    events, work = events_of(gift, tmp_path, *COMMANDS[command])
    for event, text in events:
        assert PLANTED not in text, (event, text)
        if event in ("exec", "import"):
            assert "gift" not in text, (event, text)
        assert not (event == "pickle.find_class" and "Popen" in text), text
        assert event not in ("socket.connect", "socket.getaddrinfo", "os.kill", "os.system", "os.exec"), (event, text)
        if event in ("subprocess.Popen", "os.posix_spawn"):
            assert "scancel" not in text, text
            assert "--signal" not in text, text
        if event == "sqlite3.connect":
            assert "gift.db" not in text, text
        if event in ("open", "os.rename", "os.remove", "shutil.rmtree") and str(work) in text:
            assert "/made" not in text, (event, text)
    assert not (work / "made").exists()
    assert {p.name for p in work.iterdir()} <= {"gift", f"{PLANTED}.py", "sitecustomize.py", "outputs"}
