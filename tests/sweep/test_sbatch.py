"""What enters an sbatch script: options as a mapping, no line of one's own making, no path in which SLURM replaces signs."""

from __future__ import annotations

import pytest

from rlrt.errors import UserError
from rlrt.sweep.launchers import new_name
from rlrt.sweep.sbatch import check_folder, check_texts, options
from rlrt.sweep.settings import launcher_of
from tests.forked import forked
from tests.helpers import ONE_STEP

SCRIPT = ("-m", "method=rlrt,grpo", "hydra/launcher=slurm", "hydra.launcher.dry_run=true", "tracking=none", *ONE_STEP)
MORE = "hydra.launcher.additional_parameters"


def script(tmp_path, *words, cwd=None):
    done = forked("run", [*SCRIPT, *words], cwd or tmp_path)
    assert not list(tmp_path.glob("**/job.json"))
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    "words",
    [
        [f"{MORE}={{gres: 'gpu:a100:1', nice: 5, exclusive: true, mail_type: null, hold: false}}"],
        [f"+{MORE}.gres='gpu:a100:1'", f"+{MORE}.nice=5", f"+{MORE}.exclusive=true"],
        [f"++{MORE}={{gres: 'gpu:a100:1'}}", f"+{MORE}.nice=5", f"+{MORE}.exclusive=true"],
        ["hydra.launcher={additional_parameters: {gres: 'gpu:a100:1', nice: 5, exclusive: true}}"],
    ],
)
def test_options_of_ones_own(tmp_path, words):
    code, output = script(tmp_path, *words)
    assert code == 0, output
    for line in ("#SBATCH --gres=gpu:a100:1", "#SBATCH --nice=5", "#SBATCH --exclusive", "#SBATCH --requeue"):
        assert line in output.splitlines(), output
    assert "None" not in output
    assert "False" not in output


def test_an_option_without_a_plus_is_told_so(tmp_path):
    code, output = script(tmp_path, f"{MORE}.nodelist=x")
    assert (code, output) == (
        2,
        f"error: {MORE}.nodelist: an option of sbatch is added with a plus: +{MORE}.nodelist=VALUE.\n",
    )
    code, output = script(tmp_path, f"{MORE}={{nodelist: x}}")
    assert "#SBATCH --nodelist=x" in output.splitlines()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"gres": ["a"]}, r"parameters\.gres: expected a text, a number, true or false"),
        ({"gres": {"a": 1}}, r"parameters\.gres: expected a text"),
        ({"a b": 1}, r"expected names of sbatch options, .* got 'a b'"),
        ({"nice\ntouch x": 1}, "expected names of sbatch options"),
        ({"": 1}, "expected names of sbatch options"),
        ({"comment": "a\ntouch x"}, r"parameters\.comment: expected a text on one line"),
        ({"comment": "a\rb"}, "on one line"),
        ({"comment": "a\x1b[0mb"}, "without control characters"),
    ],
)
def test_options_that_sbatch_cannot_have(values, says):
    with pytest.raises(UserError, match=says):
        options(values)


@pytest.mark.parametrize("key", ["partition", "account", "qos"])
@pytest.mark.parametrize("sign", ["\n", "\r", "\x00", "\x1b", "\x85", "\u2028", "\udc80", "\t"])
def test_control_characters(key, sign):
    text = f"a{sign}touch x #"
    with pytest.raises(
        UserError, match=rf"hydra\.launcher\.{key}: expected a text on one line without control characters"
    ):
        check_texts({key: text}, [])
    with pytest.raises(UserError, match=rf"hydra\.launcher\.{key}"):
        launcher_of({"kind": "slurm", "dry_run": True, key: text}).check()


def test_shell_lines():
    check_texts({"partition": None, "qos": "a b $(c) 'd'"}, ["module load x", "\texport A='b c'"])
    with pytest.raises(UserError, match=r"hydra\.launcher\.setup: expected a text on one line"):
        check_texts({}, ["module load x\nexport y=1"])


def test_a_line_break_is_no_line_of_the_script(tmp_path):
    code, output = script(tmp_path, "hydra.launcher.partition='a\ntouch x #'")
    assert code == 2
    assert output.startswith("error: hydra.launcher.partition: ")
    assert len(output.splitlines()) == 1
    code, output = script(tmp_path, "hydra.launcher.partition='a b $(touch x)'")
    assert code == 0
    assert "#SBATCH --partition='a b $(touch x)'" in output


@pytest.mark.parametrize("name", ["50%j x", "50%", "%A", "%%", "a%5b"])
def test_a_path_in_which_slurm_replaces_signs(tmp_path, name):
    code, output = script(tmp_path, f"hydra.sweep.dir='out/{name}'")
    assert (code, output.startswith("error: hydra.sweep.dir: expected a path without %, which SLURM replaces")) == (
        2,
        True,
    )
    cwd = tmp_path / name
    cwd.mkdir()
    code, output = script(tmp_path, cwd=cwd)  # the folder that is not typed lies below
    assert (code, output.startswith("error: hydra.sweep.dir: expected a path without %")) == (2, True)


@pytest.mark.parametrize("sign", ["%j", "%t", "%A", "%a"])
def test_a_path_in_which_submitit_replaces_signs(tmp_path, sign):
    folder = tmp_path / f"x{sign}y"
    with pytest.raises(UserError, match=f"without {sign}, which submitit replaces by a job's id"):
        check_folder(folder, on_slurm=False)
    check_folder(tmp_path / "50% x%b", on_slurm=False)
    with pytest.raises(UserError, match="control characters"):
        check_folder(tmp_path / "a\nb", on_slurm=False)


def test_the_name_of_a_submission_holds_no_sign_of_squeues(tmp_path):
    """``squeue -n`` takes names with commas between them."""
    assert new_name(tmp_path / "a,b c%d").startswith("rlrt-a_b_c_d-")
