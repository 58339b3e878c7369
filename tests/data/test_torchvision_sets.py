"""CIFAR and STL-10 in the layouts of torchvision."""

import hashlib
import pickle
import shutil
import time
import urllib.error
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from pictures import one_line
from torchvision import datasets as tv

from twinblock.core.errors import InputError
from twinblock.data import load


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """A tiny set in the layout of CIFAR-10, whose md5 sums are the official ones for this test."""
    folder = tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 3072), np.uint8)

    def write(name, content):
        (folder / name).write_bytes(data := pickle.dumps(content, protocol=2))
        return hashlib.md5(data).hexdigest()

    train = [
        [f"data_batch_{i}", write(f"data_batch_{i}", {"data": pixels[2 * i : 2 * i + 2], "labels": [i, 1]})]
        for i in (0, 1)
    ]
    test = [["test_batch", write("test_batch", {"data": pixels[4:], "labels": [0, 0]})]]
    meta = {
        "filename": "batches.meta",
        "key": "label_names",
        "md5": write("batches.meta", {"label_names": ["cat", "dog"]}),
    }
    for name, value in (("train_list", train), ("test_list", test), ("meta", meta)):
        monkeypatch.setattr(tv.CIFAR10, name, value)
    return SimpleNamespace(root=str(tmp_path / "data"), folder=folder, pixels=pixels)


def test_cifar_is_read_in_its_official_layout(cifar):
    train, test = load("cifar10", cifar.root), load("cifar10", cifar.root, "test")
    assert train.labels.tolist() == [0, 1, 1, 1]
    assert train.classes == ("cat", "dog")
    planes = cifar.pixels.reshape(6, 3, 32, 32)
    assert np.array_equal(train.pixels[1, 7, 9], planes[1, :, 7, 9])
    assert np.array_equal(test.pixels[1, 30, 2], planes[5, :, 30, 2])
    assert np.array_equal(train.batch([2])[0, 5, 6], planes[2, :, 5, 6])
    assert train.pixels.flags["C_CONTIGUOUS"]


class Payload:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("victim", ["data_batch_1", "test_batch", "batches.meta"])
def test_a_tampered_batch_is_refused_before_it_is_unpickled(cifar, tmp_path, victim):
    (cifar.folder / victim).write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    pickle.loads(pickle.dumps(Payload(tmp_path / "control"))).close()
    assert (tmp_path / "control").exists()  # such a file does run code where it is unpickled
    for split in ("train", "test"):
        with pytest.raises(InputError, match=f"{victim} is not the official file") as error:
            load("cifar10", cifar.root, split, download=False)
        one_line(error)
    assert not (tmp_path / "ran").exists()


def test_cifar_without_data_and_network_says_what_to_do(tmp_path, monkeypatch):
    def no_network(*_, **__):
        raise urllib.error.URLError("no\nroute")

    monkeypatch.setattr(tv.cifar, "download_and_extract_archive", no_network)
    with pytest.raises(
        InputError, match=r"cifar-10-batches-py/data_batch_1 is missing and the download failed .*data\.root"
    ) as error:
        load("cifar10", str(tmp_path))
    one_line(error)


def test_without_download_the_network_is_not_tried(tmp_path, monkeypatch):
    monkeypatch.setattr(tv.cifar, "download_and_extract_archive", lambda *_, **__: pytest.fail("tried"))
    with pytest.raises(InputError, match="cifar-100-python/train is missing: unpack"):
        load("cifar100", str(tmp_path), download=False)


def test_of_several_that_ask_at_once_one_downloads(cifar, tmp_path, monkeypatch):
    there, downloads = tmp_path / "elsewhere", []
    with pytest.raises(InputError, match=r"data\.root=.*elsewhere: there is no such folder; make it"):
        load("cifar10", str(there))  # it may come from the config of someone else's run
    there.mkdir()

    def download(url, root, **_):
        downloads.append(url)
        time.sleep(0.3)  # the others come meanwhile
        shutil.copytree(cifar.folder, Path(root) / cifar.folder.name)

    monkeypatch.setattr(tv.cifar, "download_and_extract_archive", download)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: load("cifar10", str(there)), range(3)))
    assert [len(images) for images in found] == [4] * 3
    assert len(downloads) == 1


@pytest.fixture
def stl(tmp_path, monkeypatch):
    folder = tmp_path / "data" / "stl10_binary"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    arrays = {
        f"{name}_X.bin": rng.integers(0, 256, (n, 3, 96, 96), np.uint8)
        for name, n in {"train": 2, "unlabeled": 3, "test": 1}.items()
    }
    arrays |= {"train_y.bin": np.array([1, 10], np.uint8), "test_y.bin": np.array([4], np.uint8)}
    md5 = {name: hashlib.md5(array.tobytes()).hexdigest() for name, array in arrays.items()}
    for name, array in arrays.items():
        array.tofile(folder / name)
    (folder / "class_names.txt").write_text("".join(f"c{i}\n" for i in range(10)))
    monkeypatch.setattr(
        tv.STL10, "train_list", [[n, md5[n]] for n in ("train_X.bin", "train_y.bin", "unlabeled_X.bin")]
    )
    monkeypatch.setattr(tv.STL10, "test_list", [[n, md5[n]] for n in ("test_X.bin", "test_y.bin")])
    return SimpleNamespace(root=str(tmp_path / "data"), folder=folder, arrays=arrays)


def test_stl_trains_on_labelled_and_unlabelled_images(stl):
    train, test = load("stl10", stl.root), load("stl10", stl.root, "test")
    assert train.labels.tolist() == [0, 9, -1, -1, -1]
    assert test.labels.tolist() == [3]
    assert train.classes == tuple(f"c{i}" for i in range(10))
    assert train.aspect is None
    # The files hold columns before rows, as torchvision's reader knows as well.
    assert train.pixels[3, 10, 20].tolist() == stl.arrays["unlabeled_X.bin"][1, :, 20, 10].tolist()
    reference = tv.STL10(stl.root, split="train+unlabeled")
    assert np.array_equal(train.pixels, reference.data.transpose(0, 2, 3, 1))


def test_stl_is_checked_against_its_md5_sums(stl):
    (stl.folder / "unlabeled_X.bin").write_bytes(bytes(3 * 3 * 96 * 96))
    with pytest.raises(InputError, match=r"unlabeled_X\.bin is not the official file"):
        load("stl10", stl.root, download=False)
