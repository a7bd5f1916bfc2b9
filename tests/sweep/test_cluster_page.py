"""The launcher files of docs/cluster.md, as printed: each makes the script that its text promises."""

from __future__ import annotations

import re

import pytest

from tests.conftest import ROOT
from tests.forked import forked
from tests.helpers import ONE_STEP

PAGE = (ROOT / "docs" / "cluster.md").read_text()
BLOCKS = dict(re.findall(r"    # my_conf/(hydra/launcher/\w+\.yaml)\n((?:    .*\n)+)", PAGE))


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("gres", ["#SBATCH --gres=gpu:h100:1", "#SBATCH --partition=gpu", "module load cuda/13.0"]),
        ("container", ["#SBATCH --gpus-per-node=1", "#SBATCH --container-image=/shared/images/cuda13.sqsh"]),
        (
            "two_nodes",
            ["#SBATCH --nodes=2", "#SBATCH --ntasks-per-node=8", "#SBATCH --gpus-per-node=8", "NCCL_SOCKET_IFNAME=ib0"],
        ),
    ],
)
def test_a_launcher_file_as_printed(tmp_path, name, lines):
    file = tmp_path / "my_conf" / "hydra" / "launcher" / f"{name}.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(re.sub("^    ", "", BLOCKS[f"hydra/launcher/{name}.yaml"], flags=re.MULTILINE))
    words = [
        "-m",
        "--config-dir",
        "my_conf",
        "method=rlrt,grpo",
        f"hydra/launcher={name}",
        "hydra.launcher.dry_run=true",
    ]
    done = forked("run", [*words, "device=auto", *ONE_STEP], tmp_path)
    assert done.returncode == 0, done.stderr
    for line in lines:
        assert line in done.stdout, done.stdout
    assert ("gpus-per-node" in done.stdout) == (name != "gres")


def test_every_block_is_tried():
    assert len(BLOCKS) == 3
