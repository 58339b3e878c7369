"""Every block measured in one pass, with or without its pooling."""

import shutil
from contextlib import contextmanager

import numpy as np
import pytest
import tiny
import torch

import twinblock
from twinblock.assembly.build import encoder_of
from twinblock.core.errors import InputError
from twinblock.evaluation import depth
from twinblock.evaluation import evaluate as evaluation
from twinblock.evaluation.depth import EveryBlock, _drawing, figure, rank_share, rows_by_block, trained_pooling
from twinblock.nn.pooling import Pooling
from twinblock.runs.run import Run, evaluation_file

SMALL = ["encoder.width=8", "encoder.kind=resnet10", "train.length=2steps", "projector.dims=[16,8]", "data.batch=64"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A blockwise run with an expansion, and an end-to-end one."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        tiny.in_place_of_any_source(patch, 200)
        blockwise = ["scope.kind=blockwise", "scope.expand=12"]
        return [
            twinblock.pretrain("simclr", out=folder / name, quiet=True, overrides=[*SMALL, *more])
            for name, more in (("blockwise", blockwise), ("whole", []))
        ]


@pytest.fixture(autouse=True)
def small_data(monkeypatch):
    tiny.in_place_of_any_source(monkeypatch, 200)


def test_a_blockwise_run_is_measured_by_block(runs):
    rows = twinblock.evaluate(runs[0])
    blocks = [f"block {k}" for k in (1, 2, 3, 4)]
    assert [row["features"] for row in rows] == ["encoder", "raw pixels", "untrained encoder", *blocks]
    assert [row["width"] for row in rows[3:]] == [8, 16, 32, 64]
    assert {**rows[-1], "features": "encoder"} == rows[0]  # the last block is the encoder
    assert all(0 < row["rank %"] <= 100 for row in rows if row["features"] != "raw pixels")
    assert rows_by_block(runs[0].evaluation) == rows[3:]
    assert (runs[0].path / "depth.png").read_bytes().startswith(b"\x89PNG")


def test_the_taps_that_a_run_was_trained_through(runs):
    encoder = runs[0].encoder()
    pooling = trained_pooling(runs[0])
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        every = EveryBlock(encoder, pooling).eval()
        first, *_, own = every(x).split(every.widths, 1)
        block = encoder.as_blocks()[0]
        torch.testing.assert_close(first, pooling[0].expansion(block(x)).mean((2, 3)))
        assert torch.equal(own, encoder(x))
    rows = twinblock.evaluate(runs[0], baselines=False, pooling=True)
    assert [row["width"] for row in rows] == [64, 12, 12, 12, 12]
    with pytest.raises(InputError, match="has none of each block"):
        twinblock.evaluate(runs[1], pooling=True)


@pytest.mark.parametrize(
    "how", [{}, {"baselines": False}, {"blocks": False}, {"pooling": True}, {"pooling": True, "baselines": False}]
)
def test_progress_ends_at_its_total(runs, monkeypatch, how):
    seen = {}

    @contextmanager
    def progress(doing, total, quiet):
        seen[doing] = done = [total]
        yield done.append

    shutil.rmtree(runs[0].path / "evaluations", ignore_errors=True)  # else nothing would be left to measure
    monkeypatch.setattr(evaluation, "progress", progress)
    twinblock.evaluate(runs[0], **how)
    assert seen.keys() == {"computing features", "fitting probes"}
    assert all(total == sum(done) > 0 for total, *done in seen.values())


def test_end_to_end_beside_blockwise(runs):
    assert len(twinblock.evaluate(runs[1], baselines=False)) == 1
    with pytest.raises(InputError, match="measure its blocks first"):
        twinblock.evaluate(runs[0], baselines=False, beside=[runs[1].path])
    assert len(twinblock.evaluate(runs[1], baselines=False, blocks=True)) == 5
    twinblock.evaluate(runs[0], baselines=False)
    alone = (runs[0].path / "depth.png").read_bytes()
    twinblock.evaluate(runs[0], baselines=False, beside=[runs[1].path])
    assert (runs[0].path / "depth.png").read_bytes() != alone


def test_every_block_by_hand():
    """Without a run: averages of the maps, or what poolings make of them and the encoder's own."""
    encoder = encoder_of(tiny.trainer_config("simclr", "end_to_end")).eval()
    x = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    maps = list(encoder.maps(x))
    averages = [m.mean((2, 3)) for m in maps]
    every = EveryBlock(encoder)
    assert every.widths == [m.shape[1] for m in maps]
    assert torch.equal(every(x), torch.cat(averages, 1))
    pooling = [Pooling(m.shape[1], "local", 2) for m in maps]
    pooled = EveryBlock(encoder, pooling)
    assert pooled.widths == [*(4 * m.shape[1] for m in maps), encoder.width]
    assert torch.equal(pooled(x), torch.cat([*(p(m) for p, m in zip(pooling, maps, strict=True)), averages[-1]], 1))


@pytest.mark.parametrize("scope", ["expansion", "end_to_end"])
def test_the_pooling_of_each_block_is_that_of_its_training(tmp_path, scope):
    trainer = tiny.trainer(tiny.config("simclr", scope, precision="fp32"), tmp_path / "run")
    trainer.save()
    trainer.run.release()
    if scope == "end_to_end":
        with pytest.raises(InputError, match=r"has none of each block; evaluate a run with scope\.kind=blockwise"):
            trained_pooling(trainer.run)
        return
    found = trained_pooling(trainer.run)
    true = [learner.network.pooling for learner in trainer.learners]
    assert len(found) == 4
    for one, other in zip(found, true, strict=True):
        assert one.width == 160
        assert all(torch.equal(t, other.state_dict()[name]) for name, t in one.state_dict().items())


def test_what_is_drawn_beside_a_run(tmp_path, monkeypatch):
    """Blocks of all runs that were measured by block on this source, and the baselines of the first."""
    row = {"linear %": 1.0, "kNN %": 2.0, "rank %": 3.0}
    baselines = [{**row, "features": name} for name in ("raw pixels", "untrained encoder", "starting weights")]
    blocks = [{**row, "features": f"block {k}"} for k in (1, 2)]
    reports = {
        "a": {"rows": [{**row, "features": "encoder"}, *baselines, *blocks]},
        "b": {"rows": blocks[:1], "pooling": True},
        "c": {"rows": baselines},
        "d": None,
    }
    runs = [Run(tmp_path / name) for name in reports]
    for run, report in zip(runs, reports.values(), strict=True):
        if report is not None:
            (run.path / "evaluations").mkdir(parents=True)
            run.write_json(evaluation_file("photos"), report)
    drawn = []
    monkeypatch.setattr(depth, "figure", lambda *given: drawn.append(given) or b"drawn")
    depth.draw_beside(runs[0], runs[1:], "photos")
    assert (runs[0].path / "depth.png").read_bytes() == b"drawn"
    ((arms, title, shown),) = drawn
    assert arms == {f"{tmp_path}/a": [blocks], f"{tmp_path}/b (pooling)": [blocks[:1]]}
    assert title == "frozen features of each block"
    assert list(shown.values()) == baselines and list(shown) == [one["features"] for one in baselines]
    depth.need_blocks(runs[:2], "photos")
    for lacking in runs[2:]:
        with pytest.raises(InputError, match=f"twinblock evaluate {lacking.path} data=photos --blocks"):
            depth.need_blocks([runs[0], lacking], "photos")


def test_rank_is_a_share_of_the_width():
    x = torch.randn(4000, 8, generator=torch.Generator().manual_seed(0))
    assert rank_share(x) == pytest.approx(100, abs=1)
    assert rank_share(x[:, :1].repeat(1, 8) + 5) == pytest.approx(100 / 8, abs=0.1)


def test_a_figure_of_several_runs_and_of_none():
    rows = [{"features": f"block {k}", "linear %": 10.0 * k, "kNN %": 9.0 * k, "rank %": 50.0} for k in (1, 2)]
    assert figure({"a": [rows, rows], "b": [rows], "nothing": [[]]}, "t").startswith(b"\x89PNG")


def test_the_figure_shows_each_block_at_its_depth_with_the_spread_of_runs_and_the_baselines():
    def run(*values):
        rows = [{"features": f"block {k}", "linear %": v, "kNN %": v / 2, "rank %": v / 4} for k, v in values]
        return [{"features": "encoder", "linear %": 99.0, "kNN %": 99.0, "rank %": 99.0}, *rows]

    arms = {
        "$two": [run((1, 20.0), (2, 40.0)), run((1, 24.0), (2, 40.0))],
        "one": [run(*((k, 8.0 * k) for k in (1, 2, 3, 4)))],
    }
    baselines = {"raw pixels": {"linear %": 12.0, "kNN %": 6.0, "rank %": None}}
    drawing = _drawing(arms, "a $title", baselines)
    linear, knn, rank = drawing.axes
    two, one = linear.containers
    assert two.lines[0].get_xydata().tolist() == [[0.5, 22], [1, 40]]
    assert one.lines[0].get_xydata().tolist() == [[0.25, 8], [0.5, 16], [0.75, 24], [1, 32]]
    spread = [np.ptp(bar[:, 1]) for bar in two.lines[2][0].get_segments()]
    assert spread == pytest.approx([2 * 8**0.5, 0])
    assert knn.containers[0].lines[0].get_ydata().tolist() == [11, 20]
    assert rank.containers[0].lines[0].get_ydata().tolist() == [5.5, 10]
    assert [set(line.get_ydata()) for line in (linear.lines[0], knn.lines[0])] == [{12}, {6}]
    curves = [one.lines[0], two.lines[0]]
    assert linear.lines[0].get_color() not in [curve.get_color() for curve in curves]
    assert linear.lines[0].get_linestyle() not in [curve.get_linestyle() for curve in curves]
    assert [curve.get_marker() for curve in curves] == ["o", "o"]
    assert len(rank.lines) == len(linear.lines) - 1  # pixels have no rank of an encoder
    for axes, name in zip(drawing.axes, ("linear %", "kNN %", "rank %"), strict=True):
        assert axes.get_ylim()[0] == 0  # no cut axis
        assert axes.get_ylabel() == name
        assert [side for side, spine in axes.spines.items() if spine.get_visible()] == ["left", "bottom"]
        assert axes.get_xlabel() == "depth (part of the blocks)"
        assert axes.get_xlim()[0] == 0 and 1 < axes.get_xlim()[1] < 1.1  # the last block is not at the edge
    (legend,) = drawing.legends
    assert [text.get_text() for text in legend.get_texts()] == ["raw pixels", r"\$two", "one"]
    assert drawing.get_suptitle() == r"a \$title"
    drawing.draw_without_rendering()
    right = max(axes.get_window_extent().x1 for axes in drawing.axes)
    assert legend.get_window_extent().x0 >= right  # beside the curves
