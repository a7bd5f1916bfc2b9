"""docs/gallery.md and its pictures, and those of docs/guide.md, from real runs: ``python -m benchmarks.gallery``.

It needs Debian's chromium; about 12 minutes on a machine of two cores. Pages are looked at by a headless browser; what a
command prints is shown as it was printed.
"""

from __future__ import annotations

import argparse
import html
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

DOCS = Path(__file__).parent.parent / "docs"
PICTURES = DOCS / "pictures"
SMALL = ("train.prompts_per_step=8", "eval.prompts=64")
FOUR = ("method=rlrt,sd,entropy,grpo", "seed=0,1,2", "train.steps=60", "train.eval_every=20")
MAP = ("method=rlrt", "method.lambda_init=0,0.5,1", "method.epsilon_w=0.2,0.5", "seed=0,1", "train.steps=40", *SMALL)
RACE = ("hydra/sweeper=race", "method=grpo,rlrt", "hydra.sweeper.max_seeds=5", "train.steps=40", *SMALL)
WIDEST = 900
"""Pixels of a picture in docs."""
TERMINAL = """<!doctype html><meta charset=utf-8><style>body{margin:0;background:#1e1e1e;color:#ddd}
pre{font:14px/1.45 ui-monospace,monospace;padding:14px;margin:0;white-space:pre}b{color:#9cdcfe}</style>"""


@dataclass(frozen=True)
class Shown:
    """A picture: name of its file, heading of its part, one sentence, and who makes it."""

    name: str
    part: str
    sentence: str
    make: Callable[[Gallery], None]


class Gallery:
    """A folder with the runs of the gallery, and the browser that looks at it.

    Args:
        place: the folder.
        real: a run of the real model with stored rollouts; None: there is none.
    """

    def __init__(self, place: Path, real: Path | None = None) -> None:
        self.place, self.real = place, real
        self.environment = os.environ | {"PYTHONPATH": str(DOCS.parent), "COLUMNS": "110"}

    def command(self, *words: str) -> str:
        """What ``python -m rlrt.WORDS`` prints."""
        done = subprocess.run(
            [sys.executable, "-m", f"rlrt.{words[0]}", *words[1:]],
            cwd=self.place, env=self.environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"rlrt.{' '.join(words)}: {done.stderr[-2000:]}")
        return done.stdout

    def sweep(self, name: str, words: tuple[str, ...]) -> Path:
        """The sweep of that name; it is run if it is not there."""
        folder = self.place / "outputs" / "sweeps" / name
        if not (folder / "report.html").is_file():
            self.command("run", "-m", *words, f"hydra.sweep.dir=outputs/sweeps/{name}")
        return folder

    def shot(
        self, url: str, name: str, height: int, width: int = 1280, patience_ms: int = 4000, cut: int | None = None
    ) -> None:
        """A page in a window of ``width`` x ``height`` pixels, ``cut`` on the right and made smaller."""
        file, profile = self.place / "shot.png", self.place / "profile"
        flags = (
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--window-size={width},{height}",
        )
        waits = (f"--virtual-time-budget={patience_ms}", f"--user-data-dir={profile}", f"--screenshot={file}")
        browser = shutil.which("chromium") or "chromium"
        subprocess.run([browser, *flags, *waits, url], capture_output=True, check=True, timeout=180)
        with Image.open(file) as whole:
            part = whole.convert("RGB").crop((0, 0, cut or width, height))
        if part.width > WIDEST:
            part = part.resize((WIDEST, round(height * WIDEST / part.width)), Image.Resampling.LANCZOS)
        part.quantize(128).save(PICTURES / f"{name}.png", optimize=True)

    def frame(self, page: Path, name: str, height: int, anchor: str) -> None:
        """A page at its anchor: a headless browser takes no picture of a page that is scrolled, but of a frame that is."""
        frame = self.place / "frame.html"
        style = "border:0;width:100vw;height:100vh"
        frame.write_text(f"<body style='margin:0'><iframe src='{page.as_uri()}#{anchor}' style='{style}'></iframe>")
        self.shot(frame.as_uri(), name, height)

    def terminal(self, typed: str, printed: str, name: str, lines: int = 40) -> None:
        """What a command prints, as a terminal shows it."""
        printed = printed.replace(str(self.place), "~/rlrt")
        wrapped = (
            textwrap.wrap(line, 118, drop_whitespace=False) or [""] for line in printed.rstrip().splitlines()[:lines]
        )
        text = [part for parts in wrapped for part in parts]
        page = self.place / "terminal.html"
        page.write_text(f"{TERMINAL}<pre><b>$ {html.escape(typed)}</b>\n{html.escape(chr(10).join(text))}</pre>")
        self.shot(page.as_uri(), name, round(20.4 * (len(text) + 1)) + 34)

    def printed(self, name: str, *words: str, lines: int = 40) -> None:
        """A picture of what a command prints."""
        self.terminal(f"python -m rlrt.{' '.join(words)}", self.command(*words), name, lines)

    @contextmanager
    def running(self) -> Iterator[Path]:
        """A sweep in the middle of its work."""
        folder = self.place / "outputs" / "sweeps" / "running"
        words = [sys.executable, "-m", "rlrt.run", "-m", "method=rlrt,grpo", "seed=0,1,2", "train.steps=400",
                 "hydra.sweep.dir=outputs/sweeps/running", "hydra.launcher.n_jobs=2"]  # fmt: skip
        with (self.place / "driver.log").open("w") as log:
            driver = subprocess.Popen(words, cwd=self.place, env=self.environment, stdout=log, stderr=log)
        try:
            end = time.monotonic() + 300
            while sum(f.read_bytes().count(b"\n") > 20 for f in folder.glob("*/metrics.jsonl")) < 2:
                if time.monotonic() > end or driver.poll() is not None:
                    raise SystemExit(
                        f"the sweep that should run does not: {(self.place / 'driver.log').read_text()[-500:]}"
                    )
                time.sleep(0.5)
            yield folder
        finally:
            driver.terminate()
            driver.wait(120)
            self.command("cancel", str(folder))  # jobs outlive their driver

    @contextmanager
    def mlflow(self, *words: str) -> Iterator[list[str]]:
        """The addresses that ``rlrt.ui`` prints, while it serves."""
        server = subprocess.Popen(
            [sys.executable, "-m", "rlrt.ui", "--port", "0", *words],
            cwd=self.place, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        try:
            assert server.stdout is not None
            urls: list[str] = []
            for line in server.stdout:
                urls += re.findall(r"http://\S+", line)
                if "Ctrl-C" in line or len(urls) > 1:
                    break
            yield urls
        finally:
            server.terminate()
            server.wait(30)


def report_tables(g: Gallery) -> None:
    """The report's head."""
    g.shot((g.sweep("four", FOUR) / "report.html").as_uri(), "report_tables", 1495)


def report_figures(g: Gallery) -> None:
    """The report's figures."""
    g.frame(g.sweep("four", FOUR) / "report.html", "report_figures", 1250, "figures")


def report_narrow(g: Gallery) -> None:
    """The report on a telephone."""
    g.shot((g.sweep("four", FOUR) / "report.html").as_uri(), "report_narrow", 900, width=400)


def live(g: Gallery) -> None:
    """The live page, and what a terminal shows meanwhile."""
    with g.running() as sweep:
        words = [sys.executable, "-m", "rlrt.report", str(sweep), "--watch", "--every", "2"]
        watch = subprocess.Popen(words, cwd=g.place, env=g.environment, stdout=subprocess.DEVNULL)
        end = time.monotonic() + 120
        while not (sweep / "report.html").is_file() and time.monotonic() < end:
            time.sleep(0.2)
        page = g.place / "live.html"
        shutil.copy(sweep / "report.html", page)
        watch.terminate()
        watch.wait(60)
        g.printed("status", "status", "running")
        g.printed("status_all", "status", "--all")
    page.write_text(
        page.read_text().replace('http-equiv="refresh"', 'name="refresh"')
    )  # a browser's virtual time would run on
    g.shot(page.as_uri(), "live", 900)


def race(g: Gallery) -> None:
    """A race's report."""
    page = g.sweep("race", RACE) / "report.html"
    g.shot(page.as_uri(), "race", 420)
    g.frame(page, "race_interval", 640, "figures")


def ablation(g: Gallery) -> None:
    """The coefficient's ablation."""
    g.sweep("map", MAP)
    for name in ("ablation_curves", "ablation_map"):
        with Image.open(g.place / "outputs" / "sweeps" / "map" / "report" / f"{name}.png") as image:
            image.convert("RGB").quantize(128).save(PICTURES / f"{name}.png", optimize=True)


def tokens(g: Gallery) -> None:
    """Rollouts of a run."""
    page = next(g.sweep("four", FOUR).glob("method=rlrt,seed=0*/tokens/step_000001.html"))
    g.shot(page.as_uri(), "tokens", 700)
    beside = g.place / "beside.html"
    beside.write_text(page.read_text().replace('class="both"', 'class="both" checked'))
    g.shot(beside.as_uri(), "tokens_beside", 700)


def real(g: Gallery) -> None:
    """Rollouts of the real model."""
    if g.real is not None:
        g.shot(max(g.real.glob("tokens/step_*.html")).resolve().as_uri(), "tokens_real", 900)


def analysis(g: Gallery) -> None:
    """What turns a wrong answer right."""
    sweep = g.sweep("four", FOUR)
    run = next(sweep.glob("method=rlrt,seed=0*"))
    if not (file := sweep / "analysis" / "analysis_wrong_to_right.png").is_file():
        g.command("analyze", str(run.relative_to(g.place)))
    with Image.open(file) as image:
        image.convert("RGB").quantize(128).save(PICTURES / "analysis.png", optimize=True)


def scout(g: Gallery) -> None:
    """Where there is room to learn."""
    g.printed("scout", "scout", "model=tiny", "data.numbers=2,3", "eval.prompts=32", lines=60)


def mlflow(g: Gallery) -> None:
    """The prepared view."""
    g.sweep("four", FOUR)
    with g.mlflow("four") as urls:
        view = next(url for url in urls if "viewStateShareKey" in url)
        # what is cut is MLflow's assistant
        g.shot(view, "mlflow_view", 1120, width=1800, patience_ms=60_000, cut=1335)


def progress(g: Gallery) -> None:
    """A run in a terminal."""
    words = ("run", "method=rlrt", "train.steps=60", "train.eval_every=20", "tracking=none", "eval.prompts=64")
    g.printed("progress", *words)


def runs(g: Gallery) -> None:
    """All runs, and two compared."""
    sweep = g.sweep("four", FOUR)
    g.printed("runs", "runs", "--where", "train.steps=60", "--sort", "eval/avg_at_8")
    of = [str(next(sweep.glob(f"method={name},seed=0*")).relative_to(g.place)) for name in ("rlrt", "grpo")]
    printed = g.command("runs", "--diff", *of)
    g.terminal("python -m rlrt.runs --diff outputs/sweeps/four/method=rlrt,seed=0* outputs/sweeps/four/method=grpo,seed=0*",
               printed, "runs_diff", 50)  # fmt: skip


SHOWN = (
    Shown("progress", "A run", "One line while it trains, and before beside after at its end.", progress),
    Shown("status", "A sweep at work", "`rlrt.status`: state, step, reward, rate and time left of every job.", live),
    Shown("status_all", "A sweep at work", "`rlrt.status --all`: a line for each sweep.", live),
    Shown(
        "live",
        "A sweep at work",
        "`rlrt.report --watch`: the report while the sweep runs, anew every few seconds.",
        live,
    ),
    Shown(
        "report_tables",
        "The report",
        "A verdict for each comparison, then means and paired differences.",
        report_tables,
    ),
    Shown("report_figures", "The report", "Held-out and learning curves with bands over seeds.", report_figures),
    Shown("report_narrow", "The report", "The same page 400 pixels wide.", report_narrow),
    Shown("race", "The report", "A race: the verdict of each arm, and what was spent.", race),
    Shown(
        "race_interval",
        "The report",
        "The same race: each arm's anytime-valid interval after each pair of seeds.",
        race,
    ),
    Shown(
        "ablation_curves",
        "The coefficient",
        "avg@8 against the first lambda, a line for each half-width.",
        ablation,
    ),
    Shown("ablation_map", "The coefficient", "The same as a map, with the number of seeds in each cell.", ablation),
    Shown(
        "tokens", "Tokens", "Rollouts, every token coloured by D: warm ones the teacher would not have written.", tokens
    ),
    Shown("tokens_beside", "Tokens", "The same beside what the teacher was shown.", tokens),
    Shown("tokens_real", "Tokens", "A language model on a word problem (`make real`): sub-word tokens.", real),
    Shown(
        "analysis",
        "Analyses",
        "`rlrt.analyze`: how far the policy moved, and what turns a wrong answer right.",
        analysis,
    ),
    Shown("scout", "Before a run", "`rlrt.scout`: where a model has room to learn.", scout),
    Shown("runs", "Runs", "`rlrt.runs`: every run here, filtered by a key of its config, sorted by a metric.", runs),
    Shown("runs_diff", "Runs", "`rlrt.runs --diff`: what differs between two runs, and from which step on.", runs),
    Shown("mlflow_view", "MLflow", "`rlrt.ui SWEEP`: the sweep's prepared view, grouped, with its curves.", mlflow),
)


def page() -> str:
    """The text of docs/gallery.md."""
    lines = [
        "# Gallery",
        "",
        "Every page, plot and terminal view, from runs of the embedded model, and one of SmolLM2-135M. "
        "`python -m benchmarks.gallery --real RUN` makes the pictures and this page "
        "([gallery.py](../benchmarks/gallery.py)). [guide.md](guide.md) says how to read them.",
    ]
    parts: dict[str, list[Shown]] = {}
    for shown in (s for s in SHOWN if (PICTURES / f"{s.name}.png").is_file()):
        parts.setdefault(shown.part, []).append(shown)
    for part, several in parts.items():
        lines += ["", f"## {part}"]
        for shown in several:
            lines += ["", shown.sentence, "", f"![{shown.sentence.replace('`', '')}](pictures/{shown.name}.png)"]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Make the pictures, then the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gallery", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=[s.name for s in SHOWN], help="these pictures; the others stay")
    parser.add_argument("--place", type=Path, help="folder of the runs, kept (default: one that is removed)")
    parser.add_argument(
        "--real", type=Path, help="a run of the real model with stored rollouts (default: its picture stays)"
    )
    arguments = parser.parse_args()
    PICTURES.mkdir(exist_ok=True)
    makers = dict.fromkeys(s.make for s in SHOWN if arguments.only is None or s.name in arguments.only)
    with tempfile.TemporaryDirectory() as folder:
        place = (arguments.place or Path(folder)).resolve()
        place.mkdir(parents=True, exist_ok=True)
        gallery = Gallery(place, arguments.real)
        for make in makers:
            begin = time.monotonic()
            make(gallery)
            print(f"{make.__name__}: {time.monotonic() - begin:.0f} s", flush=True)
    (DOCS / "gallery.md").write_text(page())


if __name__ == "__main__":
    main()
