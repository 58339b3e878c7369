"""`report`: what came of one run or more, as one HTML file."""

import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from twinblock.core.errors import InputError, one_line
from twinblock.core.files import expanded, need_free, replacing
from twinblock.core.settings import own_settings
from twinblock.core.version import __version__
from twinblock.evaluation.compare import by_run, need_different, side_by_side
from twinblock.reports import files, seen
from twinblock.reports.made import made, makes_images
from twinblock.reports.page import document, listed, paragraph, table, text
from twinblock.reports.parts import parts
from twinblock.runs.run import Run

OWN = "report.html"
log = logging.getLogger(__name__)


@own_settings()
def report(
    runs: Run | str | Path | Sequence[Run | str | Path],
    data: Any = None,
    *,
    out: str | Path | None = None,
    encoder: nn.Module | None = None,
) -> Path:
    """Write one self-contained HTML file on a run, or on several side by side, and give its path.

    It needs no server and no network. It holds the verdict and what to do; curves; views; nearest neighbours of twenty
    images; what is alike in the parts of images; a map of at most 2,000 embeddings (t-SNE); accuracies, by class and by
    block where `evaluate` measured them; measures of collapse; images left out; environment and config. What cannot be
    had is named with the reason, and the rest is written. It holds small copies of images.
    `data`: images other than the run's, as `embed` takes them. `encoder`: the module that the run was made with.
    `out`: the file, by default report.html in the run, or here for several; report.html is replaced, another file
    never. Raises InputError for what is no run, a run given twice, and a file that cannot be written.
    """
    given = [runs] if isinstance(runs, Run | str | Path) else list(runs)
    opened = [Run.open(run, encoder=encoder) for run in given]
    if not opened:
        raise InputError("report: give at least one run")
    need_different(opened, "report")
    file = _file(expanded(out) if out else opened[0].path / OWN if len(opened) == 1 else Path(OWN))
    parts = [_head(opened)]
    if len(opened) > 1:
        parts.append(
            _sections([("Side by side", partial(_compared, opened)), ("Curves", partial(files.training, opened))], 2)
        )
    parts += [_of_run(run, data, number, len(opened)) for number, run in enumerate(opened, 1)]
    html = document(f"twinblock: {', '.join(run.path.name for run in opened)}", "\n".join(parts))
    with replacing(file) as page:
        page.write(html.encode("utf-8", "backslashreplace"))
    return file


def _file(file: Path) -> Path:
    if file.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"out={file}: a report ends in .html")
    need_free(file, file.name == OWN)
    return file


def _head(runs: Sequence[Run]) -> str:
    now = datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC")
    title = runs[0].path.resolve().name if len(runs) == 1 else f"{len(runs)} runs"
    links = "".join(f'<li><a href="#run-{i}">{text(run.path)}</a></li>' for i, run in enumerate(runs, 1))
    nav = f'<nav aria-label="Runs"><ol>{links}</ol></nav>' if len(runs) > 1 else ""
    where = f"{runs[0].path} · " if len(runs) == 1 else ""
    return f"<h1>{text(title)}</h1>{paragraph(f'{where}written by twinblock {__version__} on {now}', 'soft')}{nav}"


def _compared(runs: Sequence[Run]) -> str:
    said = "The settings in which the runs differ, and what came of each; ±: standard error on the test images"
    return table(by_run(side_by_side(runs)), said)


def _of_run(run: Run, data: Any, number: int, count: int) -> str:
    """The sections on one run."""
    try:
        look, why = seen.look(run, data), None
    except Exception as error:  # its images or weights are gone or damaged: the rest can be told all the same
        look, why = None, one_line(error, 500)

    def showing(section: Callable[[Run, seen.Seen], str]) -> Callable[[], str]:
        def make() -> str:
            if look is None:
                raise InputError(why or "")
            return section(run, look)

        return make

    names = None if look is None else look.images.classes
    sections = [
        ("Verdict", partial(files.verdict, run)),
        ("Curves", partial(files.training, [run])),
        ("Views", showing(seen.views)),
        ("Nearest neighbours", showing(seen.neighbours)),
        ("Parts of images", showing(parts)),
        *([("Images that it makes", showing(made))] if makes_images(run) else []),
        ("Map of the embeddings", showing(seen.chart)),
        ("Accuracy", partial(files.accuracy, run)),
        ("Accuracy by class", partial(files.by_class, run, names)),
        ("Accuracy by block", partial(files.depth, run)),
        ("Collapse", partial(files.collapse, run)),
        ("Images left out", partial(files.left_out, run)),
        ("Environment", partial(files.environment, run)),
        ("Config", partial(files.config, run)),
    ]
    if count == 1:
        return _sections(sections, 2)
    head = f'<h2 id="run-{number}">{text(run.path)}</h2>'
    return f"<article>{head}{_sections([s for s in sections if s[0] != 'Curves'], 3)}</article>"


def _sections(sections: Sequence[tuple[str, Callable[[], str]]], level: int) -> str:
    """Sections with their headings; below them those that could not be made, each with the reason."""
    made, missing = [], []
    for title, make in sections:
        try:
            made.append(f"<section><h{level}>{title}</h{level}>{make()}</section>")
        except InputError as error:
            missing.append(f"{title}: {one_line(error, 500)}")
        except Exception as error:  # fonts, formats, files by hand: no report is lost for one section
            log.warning(f"the report goes without {title.lower()}: {type(error).__name__}: {one_line(error)}")
            missing.append(f"{title}: {type(error).__name__}: {one_line(error, 500)}")
    if missing:
        made.append(f"<section><h{level}>Not in this report</h{level}>{listed(missing)}</section>")
    return "\n".join(made)
