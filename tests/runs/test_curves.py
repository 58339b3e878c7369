"""The picture of a run."""

import json

import numpy as np
import pytest
from PIL import Image

from twinblock.core.errors import InputError
from twinblock.runs.curves import _draw_knn, _smooth, draw
from twinblock.runs.run import Run


def fake(folder, blocks=1, looks=5, **more):
    folder.mkdir()
    part = {"positive_cosine": 0.9, "negative_cosine": 0.2, "effective_rank": 5.0, "centred_rank": 7.0}
    rows = [
        {"step": 10 * i, "diagnosis": [{"encoder": part, "projector": part, **more} for _ in range(blocks)]}
        for i in range(looks)
    ]
    rows += [{"step": i, "loss": [1.0 / (i + 1)] * blocks, "lr": [i / 100] * blocks} for i in range(10 * looks)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Run(folder)


def test_one_column_for_each_run(tmp_path):
    runs = {"a": fake(tmp_path / "a", sample_knn=40.0), "$b_": fake(tmp_path / "b", blocks=4), "c": Run(tmp_path / "c")}
    sizes = []
    for count in (1, 3):
        draw(dict(list(runs.items())[:count]), tmp_path / "curves.png")
        image = np.asarray(Image.open(tmp_path / "curves.png").convert("L"))
        assert image.std() > 5
        sizes.append(image.shape)
    assert sizes[1][1] == 3 * sizes[0][1]


def test_a_picture_that_cannot_be_written(tmp_path):
    with pytest.raises(InputError, match="cannot write"):
        draw({"a": fake(tmp_path / "a")}, tmp_path / "no" / "curves.png")
    with pytest.raises(InputError, match="cannot write"):
        draw({"a": fake(tmp_path / "b")}, tmp_path / "curves.txt2")


def test_long_runs_are_averaged():
    x, y = _smooth([(i, float(i % 2)) for i in range(1000)])
    assert len(x) == 200
    assert set(y) == {0.4, 0.6}


@pytest.mark.parametrize("name", ["$USER_$JOB", "a$x^$", b"\xe9".decode("utf-8", "surrogateescape")])
def test_any_name_of_a_run_can_be_drawn(tmp_path, name):
    draw({name: fake(tmp_path / "a")}, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_titles_say_the_verdict_and_chance_and_axes_are_shared(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    runs = {"$a^_\udcff": fake(tmp_path / "a", sample_knn=40.0), "b": fake(tmp_path / "b", sample_knn=80.0)}
    needed = {"state": "healthy", "evidence": "", "advice": "", "effective_rank": 1, "width": 2}
    (tmp_path / "a" / "result.json").write_text(json.dumps({**needed, "headline": "learned", "classes": 4}))
    drawn = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: drawn.append(figure) or save(figure, *a, **k))
    draw(runs, tmp_path / "curves.png")
    axes = np.array(drawn[0].axes).reshape(5, 2)
    assert axes[0, 0].get_title().endswith("\nlearned")
    assert axes[0, 1].get_title() == "b"
    chance = [line for line in axes[2, 0].lines if list(line.get_ydata()) == [25, 25]]
    assert len(chance) == 1 and "1 of 4" in chance[0].get_label()
    assert all(row[0].get_ylim() == row[1].get_ylim() for row in axes[2:])
    assert axes[2, 0].get_ylim()[0] == 0 and axes[2, 0].get_ylim()[1] > 80
    (rate,) = axes[1, 0].lines
    assert list(rate.get_ydata()) == [i / 100 for i in range(50)]


def test_the_band_is_one_standard_error_of_the_sample(tmp_path):
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    _draw_knn(axes, [0, 1], [{"encoder": {"samples": 64.0}, "sample_knn": 50.0}] * 2, "C0", band=True)
    (band,) = axes.collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (43.75, 56.25)
