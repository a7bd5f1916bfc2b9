"""The report of a sweep: one self-contained page, and the tables and figures as separate files."""

from __future__ import annotations

import base64
import html
import time
from collections import Counter
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlrt.errors import UserError
from rlrt.records.files import Unreadable, own_folder, read_bytes, read_json, replace_text
from rlrt.records.printable import one_line
from rlrt.reporting.comparisons import AHEAD
from rlrt.reporting.confirmed import NOTE, confirmation
from rlrt.reporting.confounds import confounds
from rlrt.reporting.curves import pictures_of
from rlrt.reporting.figures import MOST, Picture, chosen
from rlrt.reporting.jobs import Job, finished, labels_of, newest_only, read_jobs
from rlrt.reporting.races import RaceRecord, read_race
from rlrt.reporting.results import curves, results
from rlrt.reporting.results import files as tables_as_files
from rlrt.reporting.tables import Table, costs, differences, interquartile_table, long_table, plain_markdown, table
from rlrt.reporting.token_view import POLICY, STYLE, cards, text_of
from rlrt.reporting.verdicts import verdicts

FOLDER = "report"
"""Subfolder of a sweep for the figures and tables as files."""
SHOWN_ROLLOUTS = 2
"""Number of rollouts of each setting on the page; the runs' folders have more."""
MOST_ANALYSES = 20
"""Figures of analyses on the page; rlrt.analyze draws fewer than ten."""
LARGEST_IMAGE = 3_000_000
"""Bytes of such a figure."""
LOOK = """
body{font-family:system-ui,sans-serif;line-height:1.45;margin:0 auto;max-width:80rem;padding:1rem;color:#111;background:#fff}
h1{font-size:1.5rem;overflow-wrap:anywhere}h2{font-size:1.2rem;margin-top:2rem;border-bottom:1px solid #ddd}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.88rem}
th,td{padding:.25rem .6rem;text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left}thead th{border-bottom:2px solid #333}tbody tr:nth-child(odd){background:#f6f6f6}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr));gap:1rem}
.figures .smooth,#smooth:checked~.figures .raw{display:none}#smooth:checked~.figures .smooth{display:block}
figure{margin:0}figure svg,figure img{width:100%;height:auto}figcaption{font-size:.8rem;color:#444}
.standing{font-size:.8rem;background:#f6f6f6;padding:.5rem;white-space:pre!important;overflow-x:auto}
.verdicts{font-size:1.05rem;padding-left:1.2rem;overflow-wrap:anywhere}.verdicts li{margin:.4rem 0}
.note{font-size:.85rem;color:#444}.bad{color:#a00}code,pre{overflow-wrap:anywhere;white-space:pre-wrap}
"""


@dataclass(frozen=True)
class Report:
    """The runs of a sweep and the baseline that they are compared with.

    Attributes:
        sweep: the sweep's folder.
        baseline: the label that the others are compared with, or None.
        jobs: one run for every label and seed.
        repeated: runs not used, since a newer one has the same label and seed.
        race: the sweep's race, if it is one.
    """

    sweep: Path
    baseline: str | None
    jobs: list[Job]
    repeated: list[Job]
    race: RaceRecord | None = None

    def tables(self) -> dict[str, Table]:
        """Return the tables by their file names without suffix."""
        tables = {"race": self.race.table()} if self.race else {}
        if (confirmed := confirmation(self.sweep)) is not None:
            tables["confirmation"] = confirmed
        tables |= {"means": table(self.jobs), "interquartile": interquartile_table(self.jobs)}
        if self.baseline is not None:
            tables["differences"] = differences(self.jobs, self.baseline)
        return tables | {"cost": costs(self.jobs)}

    def verdicts(self) -> list[str]:
        """Say of each comparison what came of it."""
        return verdicts(self.jobs, self.baseline, self.race)

    def confounds(self) -> list[str]:
        """List the labels that differ from the baseline in more than what was typed, and in what."""
        return confounds(self.jobs, self.baseline) if self.baseline is not None else []

    def missing(self, known: Container[str] = ()) -> list[str]:
        """List every job that enters no mean, with the reason; but for those whose states are ``known``."""
        left_out = [j for j in self.jobs if not j.finished and j.state not in known]
        return [f"{j.name}: {j.state}{f' ({j.error})' if j.error else ''}" for j in left_out]

    def markdown(self, cell: Callable[[str], str] = plain_markdown) -> str:
        """Format the tables and the list of unused runs; ``cell`` escapes a text."""
        tables = self.tables()
        parts = ["\n".join(f"- {cell(line)}" for line in said)] if (said := self.verdicts()) else []
        if self.race:
            parts += [tables["race"].markdown(cell), cell(self.race.note()), *map(cell, self.race.reasons())]
        if "confirmation" in tables:
            parts += [tables["confirmation"].markdown(cell), NOTE]
        parts.append(tables["means"].markdown(cell))
        if "differences" in tables:
            parts += [tables["differences"].markdown(cell), HOLM]
        if differ := self.confounds():
            parts.append("\n".join(f"Warning: {cell(line)}" for line in differ))
        if self.missing():
            parts.append(
                "Not finished, and in no mean above:\n" + "\n".join(f"- {cell(line)}" for line in self.missing())
            )
        if self.repeated:
            rows = "\n".join(f"- {cell(j.name)}" for j in self.repeated)
            parts.append(
                f"Left out, since a newer run has the same settings and seed (other code or versions):\n{rows}"
            )
        parts.append("Mean ± half-width of the 95 % interval by Student's t over seeds, final evaluation.")
        return "\n\n".join(parts) + "\n"


def read(sweep: Path, baseline: str | None) -> Report:
    """Read the report of a sweep's folder, finished or not.

    Args:
        sweep: the folder.
        baseline: a label; None: the baseline of a race, else ``grpo``, if the sweep has it and another label.

    Raises:
        UserError: for a folder without runs, or a baseline that no run has.
    """
    jobs, repeated = newest_only(read_jobs(sweep))
    labels = labels_of(jobs)
    race = read_race(sweep)
    wanted = race.baseline if race else "grpo"
    report = Report(sweep, baseline or (wanted if wanted in labels and len(labels) > 1 else None), jobs, repeated, race)
    report.tables()  # refuses an unknown baseline before any file is written
    return report


@dataclass(frozen=True)
class Live:
    """What a page shows of a sweep that runs: it asks for itself anew every ``every`` seconds, by its own header.

    Attributes:
        every: seconds.
        standing: the table of its jobs, as plain text.
    """

    every: float
    standing: str


def write(report: Report, window: int | None = None, live: Live | None = None) -> list[Path]:
    """Write ``report.html`` and ``report.md``, and tables and figures below ``report/``; return the paths of all files.

    Args:
        report: what is written.
        window: values that a point of a smoothed learning curve is the mean of (``curves.pictures_of``).
        live: for the page of a sweep that runs, of which the page alone is written.

    Raises:
        UserError: if the folder cannot be written.
    """
    folder, html_page = report.sweep / FOLDER, report.sweep / "report.html"
    pictures = [*(report.race.picture() if report.race else []), *pictures_of(report.jobs, report.baseline, window)]
    try:
        if live is not None:
            replace_text(html_page, page(report, pictures, live))
            return [html_page]
        own_folder(folder)
        files = []
        for name, data in {**report.tables(), "all": long_table(report.jobs)}.items():
            for kind, text in (("csv", data.csv()), ("tex", data.latex()), ("md", data.markdown() + "\n")):
                file = folder / f"{name}.{kind}"
                replace_text(file, text)
                files.append(file)
        files += tables_as_files({"jobs": results(report.sweep), "curves": curves(report.sweep)}, folder)
        for picture in pictures:
            files += picture.save(folder)
        replace_text(report.sweep / "report.md", report.markdown())
        replace_text(html_page, page(report, pictures))
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}).") from None
    return [html_page, report.sweep / "report.md", *files]


def page(report: Report, pictures: Sequence[Picture], live: Live | None = None) -> str:
    """Build the HTML of the page, which is self-contained: it makes no network request and runs no script."""
    name = html.escape(one_line(report.sweep.name))
    counts = Counter(job.state for job in report.jobs)
    states = ", ".join(f"{n} {state}" for state, n in sorted(counts.items()))
    parts = [f"<h1>{name}</h1>", question(report.sweep), f"<p>{len(report.jobs)} jobs: {html.escape(states)}.</p>"]
    if live is not None:
        parts.append(f"<pre class='standing'>{html.escape(live.standing)}</pre>")
    if said := report.verdicts():
        parts.append(f"<ul class='verdicts'>{''.join(f'<li>{html.escape(line)}</li>' for line in said)}</ul>")
    parts += unused_jobs(report, live is not None)
    for key, data in report.tables().items():
        if key in OF_FINISHED and not any(job.finished for job in report.jobs):
            continue
        if key == "interquartile" and all(cell == "-" for row in data.rows for cell in row[2:]):
            continue  # fewer than four seeds each
        title, note = TITLES[key]
        if key == "race" and report.race:
            note = "<br>".join(map(html.escape, [report.race.note(), *report.race.reasons()]))
        parts.append(f"<h2>{title}</h2>{data.html()}<p class='note'>{note}</p>")
        if key == "differences":
            parts += [f"<p class='note bad'>{html.escape(line)}</p>" for line in report.confounds()]
    labels = labels_of(report.jobs)
    if len(labels) > MOST:
        in_figures = ", ".join(html.escape(label) for label in chosen(report.jobs, report.baseline))
        parts.append(
            f"<p class='note'>Figures show {MOST} of {len(labels)} settings (baseline, best, worst): {in_figures}.</p>"
        )
    if pictures:
        parts.append("<h2 id='figures'>Figures</h2>" + figures_html(pictures))
    parts += [analyses(report.sweep), rollouts(report)]
    written = time.strftime("%Y-%m-%d %H:%M", time.localtime(max((j.changed for j in report.jobs), default=0.0)))
    parts.append(f"<p class='note'>Last change of a run: {written}. Tables and figures as files: {name}/{FOLDER}/.</p>")
    return document(one_line(report.sweep.name), "".join(parts), live.every if live is not None else None)


def document(title: str, body: str, every: float | None = None) -> str:
    """Build a page that makes no network request and runs no script, from its title and the HTML of its body.

    Args:
        title: as text.
        body: as HTML.
        every: seconds after which a browser reads the page anew; None: never.
    """
    again = f'<meta http-equiv="refresh" content="{max(1, round(every))}">' if every is not None else ""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">{again}<title>{html.escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{LOOK}{STYLE}</style></head><body>{body}</body></html>\n"
    )


HOLM = (
    "p, Holm: two-sided paired t test of the main metric, corrected for all comparisons with the baseline in it; it holds "
    "where the seeds were fixed beforehand. Differences in other metrics are exploratory: they have no corrected p."
)
TITLES = {
    "race": ("The race's verdicts", ""),
    "confirmation": ("The search's best", NOTE),
    "means": (
        "Means",
        "Final evaluation, mean ± half-width of the 95 % interval by Student's t over seeds. No interval: one seed.",
    ),
    "interquartile": (
        "Interquartile means",
        "Mean of the middle half of the seeds, which one odd seed cannot move; from four seeds on.",
    ),
    "differences": (
        "Paired differences",
        "Over the seeds that both have. P(larger): share of pairs of seeds in which this one's value is larger, ties half. "
        "Seeds to tell: what a difference of this size and spread would need (paired t test, 80 % power at 5 %). Intervals are "
        f"not corrected. {HOLM}",
    ),
    "cost": ("Cost", "Of the finished runs. Seconds are those of this machine, however many jobs shared it."),
}
"""Heading and note of every table, by its name in ``Report.tables``."""
OF_FINISHED = ("means", "interquartile", "differences", "cost")
"""Tables that say nothing before a run has finished."""


def question(sweep: Path) -> str:
    """Format the study's question and the sweep's command."""
    note = read_json(sweep / "sweep.json")
    text = f"<p>{text_of(note['question'])}</p>" if note.get("question") else ""
    command = f"<pre class='command'>{text_of(note['command'])}</pre>" if note.get("command") else ""
    return text + command


def unused_jobs(report: Report, live: bool) -> list[str]:
    """List the jobs that enter no mean; on a live page those that wait or run stand in its table already."""
    parts = []
    if missing := report.missing(AHEAD if live else ()):
        rows = "".join(f"<li>{html.escape(line)}</li>" for line in missing)
        parts.append(f"<h2 class='bad'>Not finished, and in no mean</h2><ul>{rows}</ul>")
    if report.repeated:
        rows = "".join(f"<li>{html.escape(j.name)}</li>" for j in report.repeated)
        parts.append(f"<h2>Left out: a newer run has the same settings and seed</h2><ul>{rows}</ul>")
    return parts


def figures_html(pictures: Sequence[Picture]) -> str:
    """Format pictures for the page. Where some have a smoothed variant, a box chooses which one is seen, without a script."""
    figures = "".join(figure_html(p.name, p.title, p.caption, p.svg(), p.variant) for p in pictures)
    box = "<input type='checkbox' id='smooth'><label for='smooth'> smoothed learning curves</label>"
    return f"{box if any(p.variant for p in pictures) else ''}<div class='figures'>{figures}</div>"


def figure_html(name: str, title: str, caption: str, svg: str, variant: str = "") -> str:
    """Format an SVG of this process for the page; its ids get the prefix ``name``, since the page holds several SVGs."""
    for mark in ('id="', 'xlink:href="#', "url(#"):
        svg = svg.replace(mark, f"{mark}{name}-")
    figcaption = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    of = f" class='{variant}'" if variant else ""
    return f"<figure{of}><h3>{html.escape(title)}</h3>{svg}{figcaption}</figure>"


def analyses(sweep: Path) -> str:
    """Show the figures that ``rlrt.analyze`` wrote next to the sweep's runs, as images.

    They are files of the folder, which anybody may have put there: an image runs nothing and asks for nothing, whatever it is.
    """
    figures = []
    for file in sorted((sweep / "analysis").glob("analysis_*.svg"))[:MOST_ANALYSES]:
        title = html.escape(one_line(file.stem.removeprefix("analysis_").replace("_", " "), 100))
        try:
            image = base64.b64encode(read_bytes(file, LARGEST_IMAGE)).decode()
            shown = f"<img alt='{title}' src='data:image/svg+xml;base64,{image}'>"
        except (FileNotFoundError, Unreadable) as error:
            shown = f"<p class='bad'>{html.escape(one_line(error))}</p>"
        figures.append(f"<figure><h3>{title}</h3>{shown}</figure>")
    return f"<h2>Analyses</h2><div class='figures'>{''.join(figures)}</div>" if figures else ""


def rollouts(report: Report) -> str:
    """Format a few stored rollouts of every setting in the figures, from the setting's first run."""
    parts = []
    for number, label in enumerate(chosen(report.jobs, report.baseline)):
        runs = finished(report.jobs, label) or [j for j in report.jobs if j.label == label]
        last = sorted(runs[0].rollouts(), key=lambda row: row.get("context") is None)[
            :SHOWN_ROLLOUTS
        ]  # with a teacher first
        if last:
            parts.append(f"<h3>{html.escape(label)}</h3>{cards(last, f's{number}')}")
    return f"<h2>Rollouts</h2>{''.join(parts)}" if parts else ""
