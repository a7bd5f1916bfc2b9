"""The pictures of docs/guide.md, from a real sweep: python benchmarks/pictures.py (needs Debian's chromium; about 6 minutes).

python -m rlrt.run -m method=rlrt,sd,entropy,grpo seed=0,1,2 train.steps=60 train.eval_every=20
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"
STUDY = ("method=rlrt,sd,entropy,grpo", "seed=0,1,2", "train.steps=60", "train.eval_every=20")
SWEEP = ("-m", *STUDY, "hydra.sweep.dir=outputs/sweeps/four")
WIDEST = 900
"""Pixels of a picture in docs."""


def shot(url: str, name: str, height: int, top: int = 0, patience_ms: int = 4000) -> None:
    """A page at 1280 pixels' width, cut from ``top`` and made smaller."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "shot.png"
        flags = (
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--window-size=1280,{top + height}",
        )
        waits = (f"--virtual-time-budget={patience_ms}", f"--user-data-dir={folder}/profile", f"--screenshot={file}")
        words = [*flags, *waits, url]
        subprocess.run([shutil.which("chromium") or "chromium", *words], capture_output=True, check=True, timeout=180)
        with Image.open(file) as whole:
            part = whole.convert("RGB").crop((0, top, 1280, top + height))
    part = part.resize((WIDEST, round(height * WIDEST / 1280)), Image.Resampling.LANCZOS)
    part.quantize(128).save(PICTURES / f"{name}.png", optimize=True)


def main() -> None:
    """Run the sweep, look at it."""
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        subprocess.run([sys.executable, "-m", "rlrt.run", *SWEEP], cwd=here, check=True)
        sweep = here / "outputs" / "sweeps" / "four"
        shot((sweep / "report.html").as_uri(), "report_tables", 1560)
        shot((sweep / "report.html").as_uri(), "report_figures", 1100, 1620)
        tokens = next(sweep.glob("method=rlrt,seed=0*/tokens/step_000001.html"))
        shot(tokens.as_uri(), "tokens", 700)
        words = [sys.executable, "-m", "rlrt.ui", "--port", "0"]
        server = subprocess.Popen(words, cwd=here, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            assert server.stdout is not None
            url = next(line for line in server.stdout if line.startswith("http")).strip()
            base, experiment = url.split("/#/")[0], url.split("/experiments/")[1].split("/")[0]
            parent = json.loads((sweep / "sweep.json").read_text())["mlflow_run_id"]
            shot(f"{base}/#/experiments/{experiment}/runs/{parent}", "mlflow", 760, 0, 20_000)
        finally:
            server.terminate()
            server.wait(30)


if __name__ == "__main__":
    main()
