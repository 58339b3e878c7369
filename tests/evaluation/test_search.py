"""`search` and `duplicates`: exact neighbours, planted duplicates found and none invented, and bad input."""

import csv
import re
import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from torch.nn.functional import normalize

import twinblock
from twinblock import cli
from twinblock.core.pictures import captions
from twinblock.data import Images, Names
from twinblock.evaluation import search as searching
from twinblock.evaluation.index import complete
from twinblock.evaluation.search import nearest, same_pixels

SMALL = [
    *("encoder.kind=resnet10", "encoder.width=8", "data.batch=8", "train.length=1steps", "projector.dims=[16,8]"),
    *("train.precision=fp32", "data.size=32"),
]


def picture(seed: int, side: int = 64) -> Image.Image:
    """Smooth noise: no two of them are alike."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on 30 pictures, of which six are duplicates of two others."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    folder.mkdir()
    for i in range(24):
        picture(i).save(folder / f"{i:02d}.png")
    picture(3).save(folder / "a_encoded.jpg", quality=70)
    picture(3).resize((48, 48), Image.Resampling.LANCZOS).save(folder / "a_smaller.png")
    ImageEnhance.Brightness(picture(3)).enhance(0.8).save(folder / "a_darker.png")
    picture(7).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "b_mirrored.png")
    Image.new("RGB", (64, 64), (90, 90, 90)).save(folder / "flat_1.png")
    Image.new("RGB", (64, 64), (200, 90, 20)).save(folder / "flat_2.png")
    return twinblock.pretrain("simclr", data=str(folder), out=folder.parent / "run", overrides=SMALL, quiet=True)


def test_neighbours_are_those_of_a_full_sort(monkeypatch):
    monkeypatch.setattr("twinblock.evaluation.search.CHUNK", 64)
    generator = torch.Generator().manual_seed(0)
    queries, rows = (
        normalize(torch.randn(7, 5, generator=generator)),
        normalize(torch.randn(30, 5, generator=generator)),
    )
    similar, index = nearest(queries, rows, 4)
    full = (queries.double() @ rows.double().T).numpy()
    assert index.tolist() == np.argsort(-full, 1)[:, :4].tolist()
    assert np.allclose(similar, -np.sort(-full, 1)[:, :4], atol=1e-6)
    assert nearest(queries, rows, 100)[1].shape == (7, 30)


def scattered(count: int = 3000) -> torch.Tensor:
    """Rows of length 1 in all directions, so that neighbours are spread over many lists."""
    return normalize(torch.randn(count, 12, generator=torch.Generator().manual_seed(0)))


def test_an_index_finds_nearly_all_neighbours_and_says_how_many(caplog):
    pytest.importorskip("faiss")
    rows = scattered()
    similar, index = nearest(rows, rows, 10, pairs=0)
    exact, places = nearest(rows, rows, 10)
    assert [m.startswith("3,000 images are compared by an index") for m in caplog.messages] == [True]
    found = np.mean([len({*a} & {*b}) / 10 for a, b in zip(index.tolist(), places.tolist(), strict=True)])
    assert found > 0.98 and (index[:, 0] == torch.arange(3000)).all()
    told = float(re.search(r"finds ([\d.]+)% of the nearest of 200", caplog.messages[0])[1])
    assert told >= 99 and abs(told - 100 * found) < 1
    torch.testing.assert_close(similar, (rows[:, None] * rows[index]).sum(2), atol=1e-5, rtol=0)
    assert (similar <= exact + 1e-5).all()


def test_what_an_index_does_not_find_is_the_nearest_once_more():
    similar, places = torch.tensor([[0.9, 0.8], [0.7, -3e38]]), torch.tensor([[4, 2], [3, -1]])
    similar, places = complete(similar, places)
    assert places.tolist() == [[4, 2], [3, 3]] and torch.equal(similar, torch.tensor([[0.9, 0.8], [0.7, 0.7]]))


def test_without_faiss_the_search_stays_exact_and_says_what_to_install(monkeypatch, caplog):
    searching.say_once.cache_clear()
    monkeypatch.setitem(sys.modules, "faiss", None)
    rows = scattered(100)
    assert torch.equal(nearest(rows, rows, 5, pairs=0)[1], nearest(rows, rows, 5)[1])
    assert 'pip install "twinblock[index]"' in caplog.text


def test_only_very_many_pairs_go_to_an_index(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert searching.PAIRS == 1024**4  # of 1,048,576 images with each other
    monkeypatch.setattr(searching, "nearest_by_index", lambda *given: pytest.fail("an index for few images"))
    assert nearest(scattered(50), scattered(50), 3)[1].shape == (50, 3)


def test_a_picture_of_the_set_is_most_like_itself(run, capsys):
    photo = run.path.parent / "photos" / "05.png"
    rows = twinblock.search(run, photo, k=3)
    assert [row["rank"] for row in rows] == [1, 2, 3] and rows[0]["name"] == "05.png"
    assert 1.0001 > rows[0]["similarity"] > max(0.9, rows[1]["similarity"])  # the set is stored at another size
    with open(run.path / "similar.csv") as file:
        assert [row["name"] for row in csv.DictReader(file)] == [row["name"] for row in rows]
    with Image.open(run.path / "similar.png") as drawn:
        assert drawn.size[0] > 100


def test_planted_duplicates_are_found_and_none_is_invented(run):
    groups: dict[int, set[str]] = {}
    for row in twinblock.duplicates(run):
        groups.setdefault(row["group"], set()).add(row["name"])
    encoded = {"03.png", "a_encoded.jpg", "a_smaller.png", "a_darker.png"}
    assert sorted(map(sorted, groups.values())) == sorted([sorted(encoded), ["07.png", "b_mirrored.png"]])
    with Image.open(run.path / "duplicates.png") as drawn:
        assert drawn.size[0] > 100


@pytest.mark.parametrize("same", [0.5, 0.9, 0.97, 1.0])
def test_what_means_of_blocks_rule_out_pixels_would_have_ruled_out(same):
    """Smooth pictures, noise, and steps from one to another, mirrored or not: all pairs, by numpy's correlation."""
    rng = np.random.default_rng(0)
    smooth = np.stack([np.asarray(picture(i, 32)) for i in range(12)]).astype(float)
    noise = rng.integers(0, 256, (8, 32, 32, 3)).astype(float)
    mixed = np.concatenate([smooth[:4] * (1 - t) + smooth[4:8] * t for t in (0.05, 0.1, 0.3)])
    rough = smooth[:6] + rng.normal(0, 20, (6, 32, 32, 3))
    x = np.concatenate([smooth, noise, mixed, mixed[::2, :, ::-1], rough, smooth[:2], noise[:2, :, ::-1]])
    x = x.clip(0, 255).round().astype(np.uint8)
    pairs = np.array([(i, j) for i in range(len(x)) for j in range(i)])
    flat, turned = (y.reshape(len(x), -1).astype(float) for y in (x, x[:, :, ::-1]))
    by_hand = [max(np.corrcoef(flat[i], y[j])[0, 1] for y in (flat, turned)) >= same - 1e-6 for i, j in pairs]
    found = same_pixels(Images(x), torch.from_numpy(pairs), same - 1e-6)
    assert found.tolist() == by_hand
    assert 0 < sum(by_hand) < len(pairs) / 3


def test_a_pair_is_looked_at_once():
    first, second = torch.tensor([0, 3, 3, 1, 2]), torch.tensor([3, 0, 1, 3, 0])
    assert searching._each_once(first, second, 4).tolist() == [[0, 2], [0, 3], [1, 3]]


def test_flat_images_are_compared_by_their_colour(run, tmp_path):
    """Of flat images correlation is noise: only those of one brightness are one."""
    folder = tmp_path / "flat"
    folder.mkdir()
    for name, level in (("a", 60), ("b", 60), ("c", 200)):
        noise = np.random.default_rng(ord(name)).integers(0, 2, (64, 64, 3))
        Image.fromarray((level + noise).astype(np.uint8)).save(folder / f"{name}.png")
    assert {row["name"] for row in twinblock.duplicates(run, data=str(folder))} <= {"a.png", "b.png"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["search", "{run}", "nosuch.jpg"], "nosuch.jpg"),
        (
            ["search", "{run}", "{photo}", "{run}/config.yaml"],
            "{run}/config.yaml cannot be read (not an image of a known format); give another picture",
        ),
        (["search", "{run}", "{run}/../photos"], "photos cannot be read (Is a directory); give another picture"),
        (["search", "{run}", "{damaged}"], "cut.png cannot be read ("),
        (["search", "{run}", "{photo}", "k=0"], "k=0: should be at least 1"),
        (["search", "{run}", "{photo}", "k=many"], "k=many: give a whole number"),
        (["duplicates", "{run}", "same=2"], "same=2: should be more than 0"),
        (["duplicates", "{run}", "sme=1"], "did you mean same?"),
    ],
)
def test_bad_input_is_one_line(run, words, said, capsys, monkeypatch, tmp_path):
    photo, damaged = run.path.parent / "photos" / "05.png", tmp_path / "cut.png"
    damaged.write_bytes(photo.read_bytes()[:500])
    there = {"run": run.path, "photo": photo, "damaged": damaged}
    monkeypatch.setattr("sys.argv", ["twinblock", *(word.format(**there) for word in words)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    error = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and said.format(**there) in error and "\n" not in error


def test_files_are_named_with_their_folder(run, capsys, monkeypatch):
    """Both can be pasted."""
    photo = run.path.parent / "photos" / "05.png"
    for words, name in ((["search", str(photo)], "similar"), (["duplicates"], "duplicates")):
        monkeypatch.setattr("sys.argv", ["twinblock", words[0], str(run.path), *words[1:]])
        with pytest.raises(SystemExit):
            cli.main()
        last = capsys.readouterr().out.strip().splitlines()[-1]
        assert last.startswith(f"{run.path}/{name}.csv and {run.path}/{name}.png")


def test_a_caption_has_the_folder_where_the_file_alone_is_ambiguous():
    names = Names.of(["cam1/00.png", "cam2/00.png", "cam2/01.png", "deep/cam3/a_rather_long_name.png", "top.png"])
    assert captions(names, [0, 2, 3, 4], 18) == {0: "cam1/00.png", 2: "01.png", 3: "a_rather…name.png", 4: "top.png"}
    assert captions(Names.of(["a/deep/folder/00.png", "b/deep/folder/00.png"]), [1], 17) == {1: "b/deep/f…r/00.png"}


def test_pictures_of_one_name_are_told_apart(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("twinblock.evaluation.search.as_png", lambda drawing: drawn.append(drawing) or b"")
    for folder, seeds in (("a", (0, 1)), ("b", (0, 2))):
        (tmp_path / "photos" / folder).mkdir(parents=True)
        for seed in seeds:
            picture(seed).save(tmp_path / "photos" / folder / f"{seed}.png")
    run = twinblock.pretrain(
        "simclr", data=str(tmp_path / "photos"), out=tmp_path / "run", overrides=[*SMALL, "data.batch=4"], quiet=True
    )
    twinblock.duplicates(run)
    assert [axes.get_title() for axes in drawn[0].axes] == ["a/0.png", "b/0.png"]
    twinblock.search(run, tmp_path / "photos" / "b" / "2.png", k=4)
    query, *found = [axes.get_title() for axes in drawn[1].axes]
    assert query == "2.png" and set(found) == {"a/0.png", "b/0.png", "1.png", "2.png"}
