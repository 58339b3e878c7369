"""`report`: one well-formed page that needs nothing beside it, holds what the run's files hold, and always comes."""

import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

import twinblock
from twinblock.core.errors import InputError
from twinblock.data.decode import printable
from twinblock.reports import files, seen

SMALL = [
    *("encoder.kind=resnet10", "encoder.width=8", "data.batch=8", "train.length=2steps", "projector.dims=[16,8]"),
    *("train.precision=fp32", "data.size=16"),
]
HOSTILE = '<img src=x onerror=alert(1)>"&\n.png'
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Notes elements, headings, links and texts; fails where a tag is not closed."""

    def __init__(self, html: str):
        super().__init__()
        self.open, self.tags, self.addresses, self.alts, self.rows, self.headings = [], [], [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        assert not any(name.startswith("on") for name in given), given
        self.tags.append(tag)
        self.addresses += [given[name] for name in ("src", "href", "srcset", "data", "action") if name in given]
        self.addresses += re.findall(r"url\(([^)]*)\)", given.get("style", ""))
        if tag == "img":
            self.alts.append(given.get("alt", ""))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1].append(data)
        if self.open and re.fullmatch("h[1-6]", self.open[-1]):
            self.headings.append(data)


def read(path) -> tuple[str, Page]:
    html = path.read_text(encoding="utf-8")
    return html, Page(html)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An evaluated run on two classes of hostile names."""
    home = tmp_path_factory.mktemp("home")
    rng = np.random.default_rng(0)
    for group, low in (("<b>bold</b>", 0), ("plain & simple", 120)):
        folder = home / "photos" / group.replace("/", "")
        folder.mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(low, low + 130, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / (HOSTILE.replace("/", "") if i == 0 else f"{i}.png"))
    (home / "photos" / "plain & simple" / "broken.jpg").write_bytes(b"no picture")
    out = home / "run"
    made = twinblock.pretrain("simclr", data=str(home / "photos"), out=out, overrides=SMALL, quiet=True)
    twinblock.evaluate(made, blocks=True, quiet=True)
    return made


@pytest.fixture(scope="module")
def page(run):
    return read(twinblock.report(run))


def test_the_page_is_whole_and_loads_nothing(page):
    html, parsed = page
    assert html.startswith("<!DOCTYPE html>") and 'lang="en"' in html
    assert parsed.addresses and all(a.startswith("data:image/") for a in parsed.addresses)
    assert not re.search(r"https?:|//[a-z]|@import|fetch\(|XMLHttpRequest", re.sub(r"base64,[A-Za-z0-9+/=]*", "", html))
    assert "default-src 'none'" in html and "prefers-color-scheme: dark" in html and "@media print" in html
    assert not {"link", "iframe", "object"} & set(parsed.tags) and parsed.tags.count("script") == 1
    assert all(parsed.alts) and "b" in parsed.tags and parsed.tags.count("h1") == 1


def test_every_section_is_there(page):
    expected = ["Verdict", "Curves", "Views", "Nearest neighbours", "Parts of images"]
    expected += ["Map of the embeddings", "Accuracy"]
    expected += ["Accuracy by block", "Collapse", "Images left out", "Environment", "Config", "Not in this report"]
    assert page[1].headings[1:] == expected  # classes of equal size have no groups


def test_values_are_those_of_the_files(run, page):
    html, parsed = page
    result = json.loads((run.path / "result.json").read_text())
    assert f"<strong>{result['headline']}</strong>" in html
    assert f"effective rank {result['effective_rank']:.1f} of {result['width']}" in html
    rows = {row[0]: row[1:] for row in parsed.rows if row}
    for row in run.evaluation["rows"]:
        knn, linear, _, width = rows[row["features"]]
        assert float(knn.split("±")[0]) == pytest.approx(row["kNN %"], abs=0.05)
        assert float(linear.split("±")[0]) == pytest.approx(row["linear %"], abs=0.05)
        assert int(width) == row["width"]
    last = [row for row in run.metrics() if "diagnosis" in row][-1]["diagnosis"][0]
    assert float(rows["effective rank (RankMe)"][0]) == pytest.approx(last["encoder"]["effective_rank"], rel=1e-3)
    start = json.loads((run.path / "environment.json").read_text())["starts"][0]
    assert rows["commit"] == [str(start["commit"] or "-")] and rows["torch"] == [torch.__version__]


def test_hostile_names_are_text(page):
    html, parsed = page
    assert "<img src=x" not in html and "&lt;img src=x onerror=alert(1)&gt;" in html
    assert "<b>bold" not in html and "&lt;b&gt;bold&lt;" in html
    assert any(r"\n.png" in alt for alt in parsed.alts)


def test_neighbours_are_those_of_the_embeddings(run, page):
    """The first row, by a full sort in NumPy."""
    found = twinblock.embed(run)
    x = found.features.double().numpy() - found.features.double().numpy().mean(0)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    order = [int(i) for i in np.argsort(-(x @ x[0]), kind="stable") if i != 0][: seen.NEIGHBOURS]
    alts = page[1].alts
    first = next(i for i, alt in enumerate(alts) if alt.startswith("query"))
    names = [found.images.names[i] for i in order]
    assert all(printable(name) in alt for name, alt in zip(names, alts[first + 1 :], strict=False))


def test_captions_tell_files_of_one_name_apart(run, page):
    """Each class has a 1.png: below it stand the folder, and then the class."""
    below = re.findall(r'<div class="(?:of|same|other)"><img[^>]*>(.*?)</div>', page[0])
    shown = {tuple(lines.split("<br>")[:2]) for lines in below}
    assert ("plain &amp; simple/1.png", "plain &amp; simple") in shown and not any(one == "1.png" for one, _ in shown)


def test_near_in_the_map_is_near_in_the_features():
    """Of four clusters far apart in 20 dimensions, as scikit-learn's trustworthiness has it; every time alike."""
    from sklearn.manifold import trustworthiness

    generator = torch.Generator().manual_seed(0)
    centres = 10 * torch.randn(4, 20, generator=generator)
    x = centres.repeat_interleave(15, 0) + torch.randn(60, 20, generator=generator)
    first = seen.places(x)
    assert trustworthiness(x.numpy(), first, n_neighbors=5) > 0.9
    assert np.array_equal(first, seen.places(x)) and first.min() == 0 and first.max() == 1
    with pytest.raises(InputError, match="too few"):
        seen.places(x[:4])
    assert np.isfinite(seen.places(torch.zeros(9, 3))).all()  # collapsed features


def test_without_its_images_a_run_still_has_a_report(run, tmp_path):
    gone = tmp_path / "gone"
    shutil.copytree(run.path, gone)
    text = (gone / "config.yaml").read_text().replace("photos", "no_longer")
    (gone / "config.yaml").write_text(text)
    (gone / "environment.json").write_text("{")
    html, parsed = read(twinblock.report(gone))
    assert "Views" not in parsed.headings and "Accuracy" in parsed.headings and "Curves" in parsed.headings
    assert "Map of the embeddings: " in html and "no_longer" in html and "Environment: environment.json" in html


def test_a_picture_that_fails_is_named_and_the_rest_is_written(run, monkeypatch):
    def broken(*_):
        raise RuntimeError("no such <font>")

    monkeypatch.setattr(files.curves, "draw", broken)
    html, parsed = read(twinblock.report(run))
    assert "Curves" not in parsed.headings and "Curves: RuntimeError: no such &lt;font&gt;" in html


def test_several_runs_have_one_table(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = shutil.copytree(run.path, tmp_path / "b")
    rate = run.config.optim.lr
    (other / "config.yaml").write_text((other / "config.yaml").read_text().replace(f"lr: {rate}", "lr: 0.51234"))
    html, parsed = read(twinblock.report([run, other], out=tmp_path / "both.html"))
    assert ["optim.lr", str(rate), "0.51234"] in parsed.rows  # a setting is never rounded
    assert parsed.headings.count("Verdict") == 2 and parsed.headings.count("Curves") == 1
    assert {a for a in parsed.addresses if a.startswith("#")} == {"#run-1", "#run-2"} and 'id="run-2"' in html


def test_an_unfinished_run_says_so(run, tmp_path):
    begun = tmp_path / "begun"
    begun.mkdir()
    for name in ("config.yaml", "metrics.jsonl"):
        (begun / name).write_bytes((run.path / name).read_bytes())
    html, parsed = read(twinblock.report(begun))
    assert "<strong>not finished</strong>" in html and "2 steps so far" in html and "Curves" in parsed.headings


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"out": "a.pdf"}, "ends in .html"),
        ({"out": "no/where.html"}, "there is no folder"),
        ({"out": "mine.html"}, "is there already"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused(run, tmp_path, monkeypatch, given, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.html").write_text("mine")
    with pytest.raises(InputError, match=said):
        twinblock.report(run, **given)
    with pytest.raises(InputError, match="given twice"):
        twinblock.report([run, run.path])
    assert (tmp_path / "mine.html").read_text() == "mine"
