"""Packed images on a server: the same images in an order of few pieces, each fetched once, in bounded memory."""

import tracemalloc

import numpy as np
import pytest
import torch
from data.test_portable import same
from pictures import encode
from served import COUNT, all_came, loaders, pieces_here, web

import twinblock
from twinblock.core import seeding
from twinblock.core.errors import InputError
from twinblock.core.seeding import LANES, order_by_pieces, window_of
from twinblock.data import load, take


@pytest.mark.parametrize("name", ["pixels", "jpeg"])
def test_it_is_the_same_set_as_on_the_disk(name, packs, site):
    here, there = load(str(packs / name)), load(f"{site.url}/{name}/")
    same(there, here)
    assert there.fingerprint() == here.fingerprint() and there.name == f"{site.url}/{name}/"
    rows = np.array([5, 600, 5, 17])
    assert torch.equal(take(there, rows).batch([3, 0]), take(here, rows).batch([3, 0]))
    assert np.array_equal(there.pixels[7:9], np.asarray(here.pixels[7:9]))
    assert load(f"{site.url}/{name}", split="test") is None


def test_few_rows_are_fetched_alone_and_a_piece_once(packs, site):
    images = load(f"{site.url}/pixels")
    images.pixels.piece_rows = 40
    images.batch([0, 300])
    assert not pieces_here(images)
    size, before = 16 * 16 * 3, len(site.requests)
    images.batch(range(80))
    all_came(images)
    ends = [(40 * size * i, 40 * size * (i + 1) - 1) for i in range(3)]  # and the next one, as these are in order
    assert sorted(request for _, request in site.requests[before:]) == sorted(f"bytes={a}-{b}" for a, b in ends)
    again = load(f"{site.url}/pixels")  # the next command
    again.pixels.piece_rows, before = 40, len(site.requests)
    images.batch(range(79, -1, -1)), again.batch(range(80))
    all_came(again)
    assert [request for path, request in site.requests[before:] if "pixels" in path] == []


@pytest.mark.parametrize(("pieces", "batch"), [(np.arange(1000) // 10, 32), (np.sort(np.arange(977) % 61), 8)])
def test_an_epoch_in_pieces(pieces, batch, monkeypatch):
    """Every image once, of few pieces at a time, in another order each epoch; the rest is left out, as always."""
    monkeypatch.setattr(seeding, "WINDOW", 4)
    order = order_by_pieces(3, 0, pieces, batch)
    assert len(order) == len(pieces) // batch * batch == len(np.unique(order))
    assert (order != order_by_pieces(3, 1, pieces, batch)).mean() > 0.9
    assert (order != order_by_pieces(4, 0, pieces, batch)).mean() > 0.9
    assert np.array_equal(order, order_by_pieces(3, 0, pieces, batch))
    lanes = order.reshape(-1, LANES, batch // LANES)
    for lane in range(LANES):
        rows, window = lanes[:, lane].ravel(), window_of(pieces)
        for start in range(0, len(rows), window):
            assert len(np.unique(pieces[rows[start : start + window]])) <= 4 + 2  # and those at the two edges
    near = np.abs(np.diff(order.reshape(-1, batch)[:, 0])) == 1
    assert near.mean() < 0.2, "neighbours of the store are not neighbours of an epoch"


def test_left_out_images_change_from_epoch_to_epoch():
    pieces = np.arange(100) // 10
    left = [set(range(100)) - set(order_by_pieces(0, epoch, pieces, 32).tolist()) for epoch in range(8)]
    assert all(len(one) == 4 for one in left) and len(set.union(*left)) > 12


def test_processes_share_each_batch_and_the_pieces(packs, site, tmp_path, monkeypatch):
    (alone,) = loaders(load(f"{site.url}/pixels"), 1)
    whole = [alone.gather(step) for step in range(25)]
    size = 10 * 16 * 16 * 3
    whole_pieces = {f"bytes={size * i}-{size * (i + 1) - 1}" for i in range(64)}
    for world in (2, 4, 8):
        opened = []
        for rank in range(world):
            monkeypatch.setenv("TWINBLOCK_CACHE", str(tmp_path / f"cache-{world}-{rank}"))  # a machine of its own
            before = len(site.requests)
            images = load(f"{site.url}/pixels")
            one = loaders(images, world)[rank]
            for step in range(9):  # which look ahead to the end of the epoch
                part, want = one.gather(step), whole[step]
                mine = slice(one.offset, one.offset + one.share)
                assert torch.equal(part.index, want.index[mine]) and torch.equal(part.labels, want.labels[mine])
                assert torch.equal(part.pixels, want.pixels[mine])
            all_came(images)
            opened.append(len({request for _, request in site.requests[before:]} & whole_pieces))
        assert max(opened) <= 64 / world + 8 and min(opened) > 0, opened  # a lane begins and ends within a piece


def test_no_more_is_kept_than_the_limit(site, monkeypatch, caplog):
    size = 10 * 16 * 16 * 3
    monkeypatch.setenv("TWINBLOCK_CACHE_GB", str(5.5 * size / 1e9))
    here = load(f"{site.url}/pixels")
    expected = here.batch(range(COUNT))
    all_came(here)
    assert len(pieces_here(here)) <= 5
    before = len(site.requests)
    here.pixels.piece_rows = 160  # so that no batch has a large part of a piece, as in sets of real size
    (loader,) = loaders(here, 1)
    for step in range(20):  # what an epoch needs at a time is more
        found = loader.gather(step)
        assert torch.equal(found.pixels, expected[found.index])
    assert len(site.requests) - before == COUNT, "each image once, and no piece that is given up again"
    assert "images are fetched one by one, which is slow. At a time 0.00049 GB are needed" in caplog.text
    assert caplog.text.count("one by one") == 1
    monkeypatch.setenv("TWINBLOCK_CACHE_GB", "much")
    with pytest.raises(InputError, match="TWINBLOCK_CACHE_GB=much should be a number of gigabytes"):
        load(f"{site.url}/pixels").soon(np.arange(COUNT))


def test_with_room_for_them_pieces_come_once_for_all_epochs_and_processes(site, monkeypatch):
    monkeypatch.setenv("TWINBLOCK_CACHE_GB", str(64.5 * 10 * 16 * 16 * 3 / 1e9))
    two = [load(f"{site.url}/pixels") for _ in "12"]
    before = len(site.requests)
    for step in range(60):
        for rank, images in enumerate(two):
            loaders(images, 2)[rank].gather(step)
    for images in two:
        all_came(images)
    assert len(site.requests) - before == 64


def test_processes_of_one_machine_share_the_limit(site, monkeypatch, caplog):
    """One of two needs half of what both do: where that does not fit, nothing is fetched in vain."""
    monkeypatch.setenv("TWINBLOCK_CACHE_GB", str(40 * 10 * 16 * 16 * 3 / 1e9))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    images = load(f"{site.url}/pixels")
    loaders(images, 2)[0].gather(0)
    all_came(images)
    assert "one by one" in caplog.text and len(pieces_here(images)) <= 2


def test_memory_is_that_of_a_few_pieces(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    for i in range(COUNT):
        (tmp_path / f"{i}.png").write_bytes(encode(np.roll(noise, i), compress_level=1))
    twinblock.pack(tmp_path, tmp_path / "packed")
    with web(tmp_path) as site:
        images = load(f"{site.url}/packed")
        (loader,) = loaders(images, 1)
        tracemalloc.start()
        try:
            for step in range(20):
                loader.gather(step)
            assert tracemalloc.get_traced_memory()[1] < COUNT * noise.size / 4
        finally:
            tracemalloc.stop()


def test_the_cache_says_what_it_keeps(site):
    images = load(f"{site.url}/pixels")
    images.batch(range(COUNT))
    (row,) = twinblock.cache()
    assert row["source"] == f"{site.url}/pixels" and row["state"] == "fetched as needed"
    assert row["bytes"] > COUNT * 16 * 16 * 3
    assert twinblock.cache("verify")[0]["state"] == "fetched as needed"
    assert twinblock.cache("clear", f"{site.url}/pixels")[0]["state"] == "removed"
    assert not pieces_here(images) and not twinblock.cache()
    same(load(f"{site.url}/pixels"), images)


def test_images_drawn_by_weight_come_one_by_one(tmp_path, caplog):
    rows = "".join(f"{i}.png,{1 + i % 3}\n" for i in range(128))
    for i in range(128):
        (tmp_path / f"{i}.png").write_bytes(encode(np.full((16, 16, 3), i, np.uint8)))
    (tmp_path / "list.csv").write_text("path,weight\n" + rows)
    twinblock.pack(tmp_path / "list.csv", tmp_path / "packed")
    with web(tmp_path) as site:
        images, here = load(f"{site.url}/packed"), load(str(tmp_path / "packed"))
        (there,), (local,) = loaders(images, 1), loaders(here, 1)
        for step in range(4):
            assert torch.equal(there.gather(step).pixels, local.gather(step).pixels)
    assert "images drawn by weight are fetched one by one" in caplog.text
