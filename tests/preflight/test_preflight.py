"""``python -m rlrt.preflight``: what it says, which key it names, and that the key helps."""

from __future__ import annotations

import dataclasses
import re
import shutil
import socket

import pytest

from rlrt.execution.memory.estimate import Layout, Lengths, estimate
from rlrt.execution.memory.free import ram
from rlrt.preflight import checks
from rlrt.preflight.__main__ import main
from rlrt.preflight.advice import SAME, Case, advise, single, together
from rlrt.preflight.device import Device, sharing_jobs
from rlrt.preflight.fit import layout_of
from rlrt.preflight.model import model_sizes
from rlrt.preflight.plan import plan
from rlrt.sweep.launchers import LocalLauncher
from tests.conftest import ROOT
from tests.helpers import settings
from tests.hub import tokenizer


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    """Qwen3-8B's config and a tokenizer, without weights."""
    folder = tmp_path_factory.mktemp("models") / "qwen3_8b"
    folder.mkdir()
    shutil.copy(ROOT / "tests" / "model" / "hub_configs" / "qwen3_8b.json", folder / "config.json")
    tokenizer("hybrid").save_pretrained(folder)
    return folder


def words_of(big, *more):
    return ["model=qwen3_8b", f"model.path={big}", "method=rlrt", "tracking=none", "data.wording=symbols", *more]


def test_what_fits_exits_with_zero_and_leaves_nothing(tmp_cwd, capsys):
    assert main(["tracking=none", "method=rlrt"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^ok +memory: \d+\.\d [kM]B of \d", said, re.MULTILINE)
    assert re.search(r"^ok +data: \d+ training and 256 held-out problems", said, re.MULTILINE)
    assert list(tmp_cwd.iterdir()) == []


def test_a_table_of_eighty_columns_without_control_codes(big, tmp_cwd, capsys):
    assert main([*words_of(big), "--memory-gb", "80"]) == 2
    table = capsys.readouterr().out.split("\n\n")[1]
    assert "\x1b" not in table
    assert max(map(len, table.splitlines())) <= 80
    values = dict(re.findall(r"^(\w[\w ]*?) +([\d.]+) ", table, re.MULTILINE))
    assert (values["weights"], values["optimiser"]) == ("32.76", "65.53")  # 4 and 8 bytes for each of 8,190,735,360


def typed(proposals, monkeypatch):
    """What a person types of them: several processes are torchrun's."""
    counts = [proposal.partition(" with ")[2].split()[0] for proposal in proposals if " with " in proposal]
    monkeypatch.setenv("WORLD_SIZE", max(counts, default="1"))
    return [proposal.partition(" with ")[0] for proposal in proposals]


def test_a_model_that_cannot_fit_gets_keys_that_make_it_fit(big, tmp_cwd, capsys, monkeypatch):
    """The proposal is typed back in: then it fits, into what was said."""
    assert main([*words_of(big), "--memory-gb", "80"]) == 2
    line = next(x for x in capsys.readouterr().out.splitlines() if "will not fit" in x)
    assert re.search(r"rollout needs \d+\.\d GB \(cache .* of 80\.0 GB; set ", line)
    found = re.search(r"; set (.*) \(then (\d+\.\d) GB\)$", line)
    proposed = found[1].split(" and ")
    assert len(proposed) > 1
    assert {p.split("=")[0] for p in proposed} == {"engine.max_rows", "distributed.strategy"}  # nothing that is learned
    main([*words_of(big, *typed(proposed, monkeypatch)), "--memory-gb", "80"])
    assert re.search(rf"^ok +memory: {found[2]} GB of 80\.0 GB$", capsys.readouterr().out, re.MULTILINE)


def test_where_nothing_suffices_it_says_how_much_would_be_needed(big, tmp_cwd, capsys):
    assert main([*words_of(big), "--memory-gb", "8"]) == 2
    line = next(x for x in capsys.readouterr().out.splitlines() if "will not fit" in x)
    needed = float(re.search(r"would still need (\d+\.\d) GB; set model=NAME to a smaller model", line)[1])
    assert needed > 8


def test_one_key_is_named_where_one_is_enough(tmp_cwd, capsys, monkeypatch):
    words = ["tracking=none", "train.prompts_per_step=64", "engine.max_new_tokens=500", "method=rlrt", "device=cpu"]
    assert main([*words, "--memory-gb", "1.0"]) == 2
    line = next(x for x in capsys.readouterr().out.splitlines() if "will not fit" in x)
    named = [option.split(" (then")[0] for option in line.split("; set ")[1].split(", or ")]
    assert "train.token_budget=8192" in named
    for key in named:
        main([*words, *typed([key], monkeypatch), "--memory-gb", "1.0"])
        assert re.search(r"^ok +memory", capsys.readouterr().out, re.MULTILINE), key


def test_a_model_that_is_not_here_is_said_in_one_sentence(tmp_cwd, capsys):
    assert main(["model=qwen3_1.7b", "tracking=none"]) == 0
    said = capsys.readouterr().out
    assert re.search(
        r"^skipped memory: model\.path: sizes are unknown.*model\.path=/path/to/folder\.$", said, re.MULTILINE
    )


@pytest.mark.parametrize(
    ("words", "says", "code"),
    [
        (["method=nothing"], r"error: method=nothing: there is no such method", 2),
        (["train.stepz=3"], r"error: train\.stepz: there is no such key\. Did you mean 'train\.steps'\?", 2),
        (["train.rollouts_per_prompt=1"], r"error: train\.rollouts_per_prompt: method rlrt compares", 2),
        (
            ["-m", "seed=0,1", "train.lr=0"],
            r"error: train\.lr: expected a number above 0, got 0\. \(in the job seed=0",
            2,
        ),
        (
            ["hydra/launcher=slurm", "hydra.launcher.mem_gb=-1"],
            r"error: hydra\.launcher\.mem_gb: expected a number above",
            2,
        ),
    ],
)
def test_a_config_that_cannot_work_is_refused_as_a_run_would(words, says, code, tmp_cwd, capsys):
    assert main(words) == code
    found = capsys.readouterr()
    assert re.search(says, found.err)
    assert found.out == ""


def test_every_kind_of_job_of_a_sweep(big, tmp_cwd, capsys):
    words = ["-m", "method=rlrt,sd", "seed=0,1,2", "tracking=none", "hydra.launcher.n_jobs=2", "--memory-gb", "1.4"]
    assert main(words) == 2
    said = capsys.readouterr().out
    assert "6 jobs, 2 problems" in said
    assert (
        len(
            re.findall(
                r"will not fit: 3 jobs like method=(?:rlrt|sd).*set hydra\.launcher\.n_jobs=1$", said, re.MULTILINE
            )
        )
        == 2
    )
    assert not (tmp_cwd / "outputs").exists()


def test_the_jobs_of_a_search_are_counted():
    planned = plan(["+sweep=optuna_rlrt", "tracking=none"], True)
    assert (len(planned.jobs), planned.several) == (1, True)
    assert planned.count >= 20


def test_data_that_a_run_cannot_use_is_a_problem(tmp_cwd, capsys):
    assert main(["data=file", "data.path=nowhere.jsonl", "tracking=none"]) == 2
    assert re.search(r"^problem data: data\.path: .*nowhere\.jsonl", capsys.readouterr().out, re.MULTILINE)


def test_more_prompts_than_there_are(tmp_cwd, capsys):
    assert main(["train.prompts_per_step=100000", "tracking=none"]) == 2
    assert re.search(r"^problem data: train\.prompts_per_step: ", capsys.readouterr().out, re.MULTILINE)


def test_a_folder_without_weights_and_one_without_config(big, tmp_path):
    assert "expected weights as *.safetensors" in str(checks.check_model(settings("model=hf", f"model.path={big}")))
    (tmp_path / "empty").mkdir()
    found = checks.check_model(settings("model=hf", f"model.path={tmp_path / 'empty'}"))
    assert (found.state, found.topic) == ("problem", "model")
    assert "expected a config.json" in found.sentence
    assert checks.check_model(settings()).state == "ok"


def test_a_disk_that_is_too_small_and_a_folder_that_is_a_file(tmp_cwd, monkeypatch):
    jobs = [job for job, _ in plan(["-m", "seed=0,1"][1:], True).jobs]
    assert [f.state for f in checks.check_folder_and_disk(tmp_cwd / "new", jobs, 2, "hydra.sweep.dir")] == ["ok", "ok"]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
    disk = checks.check_folder_and_disk(tmp_cwd / "new", jobs, 2, "hydra.sweep.dir")[-1]
    assert disk.state == "problem"
    assert "train.keep_last=1" in disk.sentence
    (tmp_cwd / "file").write_text("")
    place = checks.check_folder_and_disk(tmp_cwd / "file" / "inside", jobs, 2, "hydra.run.dir")[0]
    assert (place.state, place.sentence.endswith("set hydra.run.dir=FOLDER")) == ("problem", True)


def test_ports_that_are_taken_and_servers_that_are_not_there(monkeypatch):
    made = settings()
    assert checks.check_ports(made, 1, False) == []
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv("MASTER_PORT", str(port))
        (taken,) = checks.check_ports(made, 2, False)
        assert (taken.state, f"set MASTER_PORT={port + 1}" in taken.sentence) == ("problem", True)
        made.engine.url = f"http://127.0.0.1:{port}/v1"
        assert [f.state for f in checks.check_ports(made, 1, False)] == ["ok"]
        assert (
            checks.check_tracking(f"http://user:secret@127.0.0.1:{port}").sentence
            == f"http://***@127.0.0.1:{port} answers"
        )
    (free,) = checks.check_ports(settings(), 2, False)
    assert free.state == "ok"
    made.engine.url = f"http://127.0.0.1:{port}"
    assert "free for a server" in checks.check_ports(made, 1, False)[0].sentence
    assert checks.check_tracking(f"http://127.0.0.1:{port}").state == "warning"
    assert checks.check_ports(settings(), 2, True)[0].state == "skipped"
    monkeypatch.setenv("MASTER_PORT", "here")
    assert checks.check_ports(settings(), 2, False)[0].state == "problem"


def test_memory_of_a_machine_and_of_a_control_group(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal:  8000 kB\nMemFree: 10 kB\nMemAvailable:  6000 kB\n")
    assert ram(tmp_path / "meminfo", tmp_path) == (6000 * 1024, 8000 * 1024)
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1\n")
    assert ram(tmp_path / "meminfo", tmp_path) == (6000 * 1024, 8000 * 1024)
    (tmp_path / "memory.max").write_text("4096000\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    assert ram(tmp_path / "meminfo", tmp_path) == (3096000, 4096000)


def test_sharding_is_proposed_where_it_helps(big):
    made = settings(*words_of(big, "dtype=bfloat16", "engine.max_rows=32"))
    lengths = Lengths(200, 1200)

    def named(processes, sharded):
        found = single(Case(made, lengths, Layout("cuda", processes, sharded), model_sizes), 80 * 10**9)
        return [words for words, _ in found if "fsdp" in words]

    (words,) = named(1, False)
    processes = int(re.fullmatch(r"distributed\.strategy=fsdp with (\d+) processes", words)[1])
    assert estimate(model_sizes(made), made, lengths, Layout("cuda", processes, True)).peak <= 80 * 10**9
    assert estimate(model_sizes(made), made, lengths, Layout("cuda", processes // 2, True)).peak > 80 * 10**9
    assert named(processes // 2, True) == [words]
    device = Device("cuda", None, None, 1, "")
    assert not layout_of(made, LocalLauncher(1, None, 1, 1, None), device).sharded
    made = settings(*words_of(big, "dtype=bfloat16", "distributed.strategy=fsdp"))
    assert not layout_of(
        made, LocalLauncher(1, None, 1, 1, None), device
    ).sharded  # one process has nobody to share with


def case_of(big, layout, *words):
    return Case(settings(*words_of(big, *words)), Lengths(200, 1200), layout, model_sizes)


def test_what_is_learned_is_changed_last_and_said(big):
    sharded = advise(case_of(big, Layout("cuda", 1, False), "dtype=bfloat16", "engine.max_rows=32"), 80 * 10**9)
    assert "distributed.strategy=fsdp" in sharded
    assert "experiment" not in sharded
    words = ["engine.max_rows=1", "train.token_budget=1500", "engine.max_new_tokens=20480"]
    words += ["train.offload=optimiser", "model.offload_activations=true"]
    floats = case_of(big, Layout("cuda", 64, True), "dtype=float32", *words)
    assert re.search(r"dtype=bfloat16.*, which changes the precision$", advise(floats, int(0.9 * floats.peak())))
    halves = dataclasses.replace(floats, settings=dataclasses.replace(floats.settings, dtype="bfloat16"))
    last = advise(halves, int(0.8 * halves.peak()))
    assert re.search(r"^set engine\.max_new_tokens=.*, which changes the experiment$", last)


def test_the_hosts_memory_is_named_before_another_precision_and_after_plain_changes(big):
    words = ["dtype=float32", "engine.max_rows=1", "train.token_budget=1500", "engine.max_new_tokens=1000"]
    case = case_of(big, Layout("cuda", 64, True), *words)
    enough = case.with_key("train", "offload", "optimiser").peak()
    assert enough < case.peak()
    assert re.search(r"^set train\.offload=optimiser \(then \d+\.\d GB\)$", advise(case, enough))
    tight = dataclasses.replace(case, layout=Layout("cuda", 1, False))
    plain = advise(tight, 80 * 10**9)
    assert "distributed.strategy=fsdp" in plain
    assert "offload" not in plain


def test_the_advice_takes_the_mildest_values_that_fit_together(big):
    case = case_of(big, Layout("cuda", 1, False), "engine.max_rows=512")
    words, peak = together(case, 80 * 10**9, SAME)
    assert peak <= 80 * 10**9
    rows = int(next(w for w in words if "max_rows" in w).split("=")[1])
    processes = int(re.search(r"with (\d+) processes", " ".join(words))[1])
    layout = Layout("cuda", processes, True)
    tighter = dataclasses.replace(case.with_key("engine", "max_rows", 2 * rows), layout=layout)
    assert tighter.peak() > 80 * 10**9


@pytest.mark.parametrize(
    ("share", "found"), [("0.1", "set engine.gpu_memory_utilization=null"), ("0.9", None), ("null", None)]
)
def test_a_share_that_does_not_hold_the_engine(big, share, found, tmp_cwd, capsys):
    words = ["engine=vllm", "model.lora=4", f"engine.gpu_memory_utilization={share}"]
    main([*words_of(big, *words), "--memory-gb", "80"])
    line = next((x for x in capsys.readouterr().out.splitlines() if x.startswith("problem engine: vLLM needs")), None)
    assert (line is None) == (found is None)
    assert found is None or line.endswith("to give it what the trainer leaves")


def test_ram_of_a_node_whose_processes_share_a_model(big, tmp_cwd, capsys):
    words = [
        *words_of(big),
        "-m",
        "hydra/launcher=slurm",
        "distributed.strategy=fsdp",
        "hydra.launcher.tasks_per_node=8",
    ]
    main([*words, "--memory-gb", "80"])
    # 8 x 3 + 12 x 8.190735360 GB = 122.3: the files are read once, and rank 0 gathers weights and moments
    assert re.search(
        r"^warning host memory: 8 processes of a node take 122\.3 GB .*mem_gb=114$", capsys.readouterr().out, re.M
    )
    main([*words, "hydra.launcher.mem_gb=100", "--memory-gb", "80"])
    assert re.search(
        r"^problem host memory: .* of 107\.4 GB \(hydra\.launcher\.mem_gb\); set ", capsys.readouterr().out, re.M
    )
    main([*words, "hydra.launcher.mem_gb=140", "teacher.weights=ema", "--memory-gb", "80"])
    assert re.search(r"^problem host memory: 8 .* take 155\.1 GB", capsys.readouterr().out, re.M)
    main([*words, "hydra.launcher.mem_gb=300", "--memory-gb", "80"])
    assert re.search(r"^ok +host memory: ", capsys.readouterr().out, re.M)
    main([*words_of(big), "device=cpu", "--memory-gb", "80"])
    assert "host memory" not in capsys.readouterr().out


def test_jobs_that_have_a_gpu_each_do_not_share_one(monkeypatch):
    launcher = LocalLauncher(None, None, 1, 1, None)
    monkeypatch.setattr(launcher, "_cards", ["0", "1", "2", "3"])
    assert sharing_jobs(launcher, True, "cuda") == 1
    assert sharing_jobs(launcher, True, "cpu") == 4
    assert sharing_jobs(dataclasses.replace(launcher, n_jobs=8), False, "cuda") == 1
    crowded = LocalLauncher(8, None, 1, 1, None)
    monkeypatch.setattr(crowded, "_cards", ["0", "1", "2", "3"])
    assert sharing_jobs(crowded, True, "cuda") == 2


def test_machines_that_the_local_launcher_does_not_have(tmp_cwd, capsys):
    assert main(["-m", "cluster=h100x8x2", "engine=hf", "tracking=none", "seed=0,1", "--memory-gb", "80"]) == 2
    assert re.search(
        r"^problem launcher: hydra\.launcher\.nodes: .*add hydra/launcher=slurm\.$", capsys.readouterr().out, re.M
    )


def test_the_pages_sample_is_what_is_printed(tmp_path, tmp_cwd, capsys):
    """All but the names of folders and what this machine has."""
    shutil.copy(ROOT / "tests" / "model" / "hub_configs" / "qwen3_8b.json", tmp_path / "config.json")
    words = ["model=qwen3_8b", f"model.path={tmp_path}", "method=rlrt", "tracking=none"]
    assert main([*words, "--memory-gb", "80"]) == 2
    page = (ROOT / "docs" / "preflight.md").read_text().replace("/tmp/qwen3_8b", str(tmp_path))
    for line in capsys.readouterr().out.splitlines():
        assert line.startswith("ok      folder") or f"    {line}".rstrip() in page, line
