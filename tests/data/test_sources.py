"""Built-in sets, folders of images, parquet files and hub ids."""

import hashlib
import io
import json
import os
import pickle
import sys
import urllib.error
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets as tv

from twinblock.data import load
from twinblock.errors import InputError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TWINBLOCK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def photos(tmp_path) -> Path:
    (tmp_path / "photos").mkdir()
    return tmp_path / "photos"


def png(value: int, width: int = 6, height: int = 6) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), value, np.uint8)).save(out, "PNG")
    return out.getvalue()


def put(folder: Path, name: str, value: int = 0) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(png(value))


def values(images) -> list[int]:
    return images.pixels[:, 0, 0, 0].tolist()


def one_line(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


# ---- folders


def test_a_flat_folder_is_read_in_order_of_name_without_labels(photos):
    for name, value in {"b.PNG": 2, "a.jpg": 1, "c.JPeG": 3}.items():
        put(photos, name, value)
    for other in ("notes.txt", ".hidden.png", "._a.jpg"):
        (photos / other).write_text("no image")
    images = load(str(photos))
    assert values(images) == [1, 2, 3]
    assert images.labels is None
    assert images.classes is None
    assert images.skipped == ()
    assert images.name == str(photos)
    assert load(str(photos), split="test") is None


def test_folders_of_any_depth_give_the_labels_of_the_first_level(photos):
    put(photos, "cat/x/y/1.png", 1)
    put(photos, "cat/0.png", 2)
    put(photos, "dog/z.png", 3)
    put(photos, ".cache/z.png", 4)
    (photos / "empty").mkdir()
    images = load(str(photos))
    assert images.classes == ("cat", "dog")
    assert dict(zip(values(images), images.labels.tolist(), strict=True)) == {1: 0, 2: 0, 3: 1}


@pytest.mark.parametrize("also", ["loose.png", "cat/more/1.png"])
def test_no_labels_where_an_image_is_loose_or_there_is_one_class(photos, also):
    put(photos, "cat/0.png")
    put(photos, also)
    if also == "loose.png":
        put(photos, "dog/1.png")
    assert load(str(photos)).labels is None


@pytest.mark.parametrize("name", ["test", "val", "valid", "validation", "Test"])
def test_train_and_test_folders_are_the_splits(photos, name):
    put(photos, "train/cat/0.png", 1)
    put(photos, "train/dog/0.png", 2)
    put(photos, f"{name}/dog/0.png", 3)
    put(photos, f"{name}/bird/0.png", 4)  # is before cat by name, and not in training
    train, test = load(str(photos)), load(str(photos), split="test")
    assert (values(train), train.labels.tolist(), train.classes) == ([1, 2], [0, 1], ("cat", "dog"))
    assert dict(zip(values(test), test.labels.tolist(), strict=True)) == {3: 1, 4: 2}
    assert list(train.names) == ["train/cat/0.png", "train/dog/0.png"]  # from the folder that the user named
    assert sorted(test.names) == [f"{name}/bird/0.png", f"{name}/dog/0.png"]
    assert list(load(str(photos / "train")).names) == ["cat/0.png", "dog/0.png"]  # the same files by another way
    assert test.classes == ("cat", "dog", "bird")


def test_the_test_split_is_the_one_with_the_classes_of_training(photos):
    for name in ("train/cat/0.png", "train/dog/0.png", "val/cat/0.png", "val/dog/1.png", "test/0.png"):
        put(photos, name)
    assert load(str(photos), split="test").labels.tolist() == [0, 1]


@pytest.mark.parametrize("name", ["test/0.png", "test/everything/0.png"])
def test_a_test_folder_without_the_classes_of_training_has_no_labels(photos, name):
    for file in ("train/cat/0.png", "train/dog/0.png", name):
        put(photos, file)
    test = load(str(photos), split="test")
    assert len(test) == 1
    assert test.labels is None


def test_a_class_named_train_is_a_class(photos):
    for name in ("train/0.png", "bus/0.png"):
        put(photos, name)
    assert load(str(photos)).classes == ("bus", "train")


def test_links_are_followed_but_not_in_circles(photos, tmp_path):
    put(photos, "a/0.png", 1)
    put(tmp_path, "elsewhere/1.png", 2)
    (photos / "b").symlink_to(tmp_path / "elsewhere")
    (photos / "a" / "up").symlink_to(photos)
    (photos / "loop.png").symlink_to(photos / "loop.png")
    for i in range(30):
        put(photos, f"c/{i:02}.png", 3)
    images = load(str(photos))
    assert values(images) == [1, 2] + [3] * 30
    assert [name for name, _ in images.skipped] == ["loop.png"]


def test_a_pipe_named_as_an_image_is_not_waited_for(photos):
    put(photos, "a.png", 1)
    os.mkfifo(photos / "b.png")
    assert values(load(str(photos))) == [1]


def test_strange_names_are_harmless(photos):
    names = ["a b.png", "[red]x[/red].png", "new\nline.png", "ünï ✓.png", "=1+1.png", "{a}%s.png", "<b>.png"]
    for i, name in enumerate(names):
        put(photos, f"[bold]\n{i % 2}/{name}", i)
    with open(os.fsencode(photos / "[bold]\n0") + b"/\xff.png", "wb") as file:
        file.write(png(7))
    for i in range(100):
        put(photos, f"[bold]\n0/many/{i}.png", 8)
    put(photos, "[bold]\n1/bad\n[red].png")
    (photos / "[bold]\n1/bad\n[red].png").write_bytes(b"")
    images = load(str(photos))
    assert sorted(values(images)) == [*range(8), *[8] * 100]
    assert images.classes == ("[bold]\\n0", "[bold]\\n1")
    assert images.skipped == (("[bold]\\n1/bad\\n[red].png", "empty file"),)


def test_a_changed_folder_is_packed_again_and_an_unchanged_one_is_not(photos, cache, tmp_path):
    def paint(number: int, value: int, time: int) -> None:
        Image.new("RGB", (6, 6), (value,) * 3).save(path := photos / f"{number:02}.bmp")
        os.utime(path, ns=(0, time))

    def stores() -> int:
        return len([path for path in cache.iterdir() if path.is_dir()])

    for i in range(40):
        paint(i, i, 0)
    assert values(load(str(photos))) == values(load(str(photos))) == list(range(40))
    assert stores() == 1
    paint(1, 99, 1)  # only its time differs, by a nanosecond, and its content
    assert values(load(str(photos))) == [0, 99, *range(2, 40)]
    (photos / "01.bmp").rename(photos / "99.bmp")
    assert values(load(str(photos))) == [0, *range(2, 40), 99]
    assert stores() == 3
    photos.rename(tmp_path / "moved")
    assert values(load(str(tmp_path / "moved"))) == [0, *range(2, 40), 99]
    assert stores() == 3


def test_a_file_that_moves_to_another_class_gets_its_label(photos):
    for name in ("cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png"):
        put(photos, name)
    assert load(str(photos)).labels.tolist() == [0, 0, 1, 1]
    (photos / "cat" / "1.png").rename(photos / "dog" / "-first.png")
    assert load(str(photos)).labels.tolist() == [0, 1, 1, 1]


def test_folders_alike_in_names_sizes_and_times_are_told_apart(tmp_path):
    for name, value in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        Image.new("RGB", (6, 6), (value,) * 3).save(tmp_path / name / "a.bmp")
        os.utime(tmp_path / name / "a.bmp", ns=(0, 0))
    assert values(load(str(tmp_path / "one"))) == [1]
    assert values(load(str(tmp_path / "two"))) == [2]


def test_root_is_the_folder_that_a_relative_path_starts_from(photos):
    put(photos, "a.png", 5)
    assert values(load("photos", root=str(photos.parent))) == [5]


def test_size_gives_the_stored_side(photos):
    for name, side in (("a.png", 300), ("b.png", 200)):
        (photos / name).write_bytes(png(0, side, side))
    assert load(str(photos), size=112).pixels.shape == (2, 128, 128, 3)


def test_an_empty_folder_is_one_line(photos):
    (photos / "notes.txt").touch()
    with pytest.raises(InputError, match="no image files") as error:
        load(str(photos))
    assert "class" not in one_line(error)


@pytest.mark.parametrize("path", ["gone/", "./gone", "/gone/photos", "a/b/c", "new\nline", "~/gone-for-good"])
def test_a_missing_folder_is_one_line(path):
    with pytest.raises(InputError, match="no such folder") as error:
        load(path)
    one_line(error)


def test_a_file_is_not_a_source(tmp_path):
    put(tmp_path, "a.png")
    with pytest.raises(InputError, match="give the folder"):
        load(str(tmp_path / "a.png"))


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("cifar01", "cifar10"), ("cifar_100", "cifar100"), ("stl-10", "stl10"), ("photodigit", "photodigits")],
)
def test_a_misspelt_name_names_the_nearest(typed, meant):
    with pytest.raises(InputError, match=f"'{meant}'.*folder.*Hugging Face") as error:
        load(typed)
    one_line(error)


# ---- torchvision's layouts


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


# ---- Hugging Face


def write_parquet(path: Path, columns: dict, features: dict | None = None, **options) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    if features:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, **options)


def cells(*numbers: int) -> list[dict]:
    return [{"bytes": png(number), "path": None} for number in numbers]


NAMED = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train.parquet", "test.parquet"),
        ("data/train-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet"),
        ("train/0000.parquet", "val/0000.parquet"),
        ("everything.parquet", "test-00000-of-00001.parquet"),
    ],
)
def test_parquet_files_are_split_by_name_or_folder(tmp_path, train, test):
    write_parquet(tmp_path / train, {"image": cells(1, 2, 3), "label": [0, 1, 1]}, NAMED)
    write_parquet(tmp_path / test, {"image": cells(4), "label": [1]}, NAMED)
    images, held_out = load(str(tmp_path)), load(str(tmp_path), split="test")
    assert (values(images), images.labels.tolist(), images.classes) == ([1, 2, 3], [0, 1, 1], ("cat", "dog"))
    assert (values(held_out), held_out.labels.tolist()) == ([4], [1])


def test_parquet_files_of_a_split_follow_one_another(tmp_path):
    for i in range(3):
        rows = range(250 * i, 250 * i + 250)
        columns = {"img": cells(*(row % 256 for row in rows)), "fine_label": list(rows)}
        write_parquet(tmp_path / f"train-0000{i}-of-00003.parquet", columns, row_group_size=120)
    images = load(str(tmp_path))
    assert images.labels.tolist() == list(range(750))
    assert values(images) == [i % 256 for i in range(750)]
    assert images.classes is None
    assert load(str(tmp_path), split="test") is None


def test_columns_are_found_by_type_and_name(tmp_path):
    columns = {
        "id": [7, 8],
        "caption": ["x", "y"],
        "picture": [png(1), png(2)],
        "coarse_label": [0, 0],
        "fine_label": [5, None],
    }
    write_parquet(tmp_path / "train.parquet", columns)
    images = load(str(tmp_path))
    assert values(images) == [1, 2]
    assert images.labels.tolist() == [5, -1]


def test_rows_without_image_are_skipped_and_paths_are_followed(tmp_path):
    put(tmp_path, "beside.png", 9)
    write_parquet(
        tmp_path / "train.parquet",
        {"image": [*cells(*range(40)), {"bytes": None, "path": "beside.png"}, None]},
    )
    images = load(str(tmp_path))
    assert values(images) == [*range(40), 9]
    assert images.skipped == (("train row 41", "empty file"),)


def test_a_test_split_without_labels_gives_way_to_validation(tmp_path):
    for name, label in (("train", 0), ("test", -1), ("validation", 1)):
        write_parquet(tmp_path / f"{name}.parquet", {"image": cells(label + 5), "label": [label]}, NAMED)
    assert values(load(str(tmp_path), split="test")) == [6]


def test_an_empty_test_split_is_none(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    write_parquet(tmp_path / "train.parquet", {"image": cells(1), "label": [0]})
    write_parquet(tmp_path / "test.parquet", {"image": pyarrow.array(cells(1))[:0], "label": pyarrow.array([0])[:0]})
    assert load(str(tmp_path), split="test") is None
    assert load(str(tmp_path)).labels.tolist() == [0]


def test_metadata_beside_images_is_no_data_set(tmp_path):
    put(tmp_path, "photos/a.png", 3)
    write_parquet(tmp_path / "photos" / "metadata.parquet", {"file_name": ["a.png"]})
    assert values(load(str(tmp_path / "photos"))) == [3]


def test_unusable_parquet_files_are_one_line(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    write_parquet(tmp_path / "text" / "train.parquet", {"text": ["a"], "label": [1]})
    write_parquet(tmp_path / "only" / "test.parquet", {"image": cells(1)})
    write_parquet(tmp_path / "none" / "train.parquet", {"image": pyarrow.array(cells(1))[:0]})
    write_parquet(tmp_path / "torn" / "train.parquet", {"image": cells(1)})
    (tmp_path / "torn" / "train.parquet").write_bytes(b"PAR1 and then nothing")
    for name, message in {
        "text": "text, label",
        "only": "no training split",
        "none": "no images",
        "torn": "cannot be read",
    }.items():
        with pytest.raises(InputError, match=message) as error:
            load(str(tmp_path / name))
        one_line(error)


def test_without_the_optional_packages_one_line_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "train.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    for source in (str(tmp_path), "someone/something", "something"):
        with pytest.raises(InputError, match=r'pip install "twinblock\[hf\]"') as error:
            load(source)
        one_line(error)


@pytest.fixture
def hub(monkeypatch):
    """A hub, reachable if `online`, with the set `found`; `asked` says if load_dataset may go online."""
    datasets = pytest.importorskip("datasets")
    import huggingface_hub

    state = SimpleNamespace(online=True, asked=[], found=None, datasets=datasets)

    def info(self, source, timeout):
        if not state.online:
            raise ConnectionError("cannot reach the hub\nat all")
        if state.found is None:
            raise ConnectionError("401: no such set")

    def load_dataset(source, cache_dir):
        state.asked.append(not huggingface_hub.constants.HF_HUB_OFFLINE)
        if state.found is None:
            raise FileNotFoundError("no local copy")
        return state.found

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    yield state
    assert huggingface_hub.constants.HF_HUB_OFFLINE is False


@pytest.mark.parametrize(("online", "reason"), [(False, "cannot reach the hub at all"), (True, "401: no such set")])
def test_a_hub_failure_is_one_line(hub, online, reason):
    hub.online = online
    with pytest.raises(InputError, match=rf"'someone/cifar10' is neither .*\({reason}\); check") as error:
        load("someone/cifar10")
    one_line(error)
    assert hub.asked == [False]  # online, it would try for half a minute


@pytest.mark.parametrize(("online", "download"), [(True, True), (False, True), (True, False)])
def test_a_hub_set_is_read_through_datasets(hub, online, download):
    datasets, hub.online = hub.datasets, online
    features = datasets.Features({"label": datasets.ClassLabel(names=["cat", "dog"]), "image": datasets.Image()})

    def split(numbers):
        return datasets.Dataset.from_dict(
            {"label": [n % 2 for n in numbers], "image": cells(*numbers)}, features=features
        )

    hub.found = datasets.DatasetDict(train=split(range(210)), validation=split([1, 2]))
    images, held_out = (load("someone/something", split=name, download=download) for name in ("train", "test"))
    assert hub.asked == [online and download] * 2
    assert values(images) == list(range(210))
    assert images.labels.tolist() == [n % 2 for n in range(210)]
    assert images.classes == ("cat", "dog")
    assert values(held_out) == [1, 2]
