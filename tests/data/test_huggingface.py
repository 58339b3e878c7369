"""Parquet files and hub ids."""

import sys
from types import SimpleNamespace

import pytest
from pictures import cells, one_line, plain, put, values, write_parquet

from twinblock.core.errors import InputError
from twinblock.data import load

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
        "picture": [plain(1), plain(2)],
        "coarse_label": [0, 0],
        "fine_label": [5, None],
    }
    write_parquet(tmp_path / "train.parquet", columns)
    images = load(str(tmp_path))
    assert values(images) == [1, 2]
    assert images.labels.tolist() == [5, -1]


@pytest.mark.parametrize("name", ["image", "img", "Images", "PICTURE", "photo", "jpg", "png", "webp"])
def test_the_image_column_is_the_one_of_a_usual_name(tmp_path, name):
    write_parquet(tmp_path / "structs" / "train.parquet", {"mask": cells(1, 1), name: cells(2, 3)})
    write_parquet(tmp_path / "bytes" / "train.parquet", {"id_hash": [b"a", b"b"], name: [plain(2), plain(3)]})
    declared = {"mask": {"_type": "Image"}, name: {"_type": "Image"}}
    write_parquet(tmp_path / "declared" / "train.parquet", {"mask": cells(1, 1), name: cells(2, 3)}, declared)
    for kind in ("structs", "bytes", "declared"):
        assert values(load(str(tmp_path / kind))) == [2, 3]


def test_the_column_that_is_taken_among_several_is_said(tmp_path, caplog):
    write_parquet(tmp_path / "train.parquet", {"mask": cells(1, 1), "image": cells(2, 3), "label": [0, 1]})
    images = load(str(tmp_path))
    assert (values(images), images.classes_from) == ([2, 3], "column label")
    assert "the images of column image are used, not mask" in caplog.text


def test_several_columns_of_images_of_which_none_has_a_usual_name_are_one_line(tmp_path):
    declared = {"mask": {"_type": "Image"}, "scan": {"_type": "Image"}}
    write_parquet(tmp_path / "structs" / "train.parquet", {"mask": cells(1, 1), "scan": cells(2, 3)})
    write_parquet(tmp_path / "bytes" / "train.parquet", {"mask": [plain(1)], "scan": [plain(2)]})
    write_parquet(tmp_path / "declared" / "train.parquet", {"mask": cells(1, 1), "scan": cells(2, 3)}, declared)
    for kind in ("structs", "bytes", "declared"):
        with pytest.raises(InputError, match=r"several columns may hold images \(mask, scan\); rename") as error:
            load(str(tmp_path / kind))
        one_line(error)
    write_parquet(
        tmp_path / "one" / "train.parquet", {"mask": cells(1, 1), "scan": cells(2, 3)}, {"scan": NAMED["image"]}
    )
    assert values(load(str(tmp_path / "one"))) == [2, 3]


def test_labels_that_are_floats_are_mentioned(tmp_path, caplog):
    write_parquet(tmp_path / "train.parquet", {"image": cells(1, 2), "label": [0.0, 1.0]})
    assert load(str(tmp_path)).labels is None
    assert "column label holds floats and is not used" in caplog.text


def test_names_and_truth_values_become_classes(tmp_path):
    pa = pytest.importorskip("pyarrow")
    names = ["dog", None, "cat", "a\nb"]
    for kind, column in {"text": pa.array(names), "dictionary": pa.array(names).dictionary_encode()}.items():
        write_parquet(tmp_path / kind / "train.parquet", {"image": cells(1, 2, 3, 4), "Label": column})
        images = load(str(tmp_path / kind))
        assert (images.labels.tolist(), images.classes) == ([2, -1, 1, 0], ("a\\nb", "cat", "dog"))
    write_parquet(tmp_path / "bool" / "train.parquet", {"image": cells(1, 2, 3), "label": [True, False, None]})
    images = load(str(tmp_path / "bool"))
    assert (images.labels.tolist(), images.classes) == ([1, 0, -1], ("False", "True"))
    numbers = pa.array([5, 3, 5]).dictionary_encode()
    write_parquet(tmp_path / "numbers" / "train.parquet", {"image": cells(1, 2, 3), "label": numbers})
    assert load(str(tmp_path / "numbers")).labels.tolist() == [5, 3, 5]
    write_parquet(tmp_path / "float" / "train.parquet", {"image": cells(1, 2), "label": [1.0, 0.0]})
    assert load(str(tmp_path / "float")).labels is None


def test_a_name_that_is_only_in_the_test_split_follows_those_of_training(tmp_path):
    write_parquet(tmp_path / "train.parquet", {"image": cells(1, 2, 3), "label": ["dog", "cat", "dog"]})
    write_parquet(tmp_path / "test.parquet", {"image": cells(4), "label": pytest.importorskip("pyarrow").nulls(1)})
    write_parquet(tmp_path / "validation.parquet", {"image": cells(4, 5), "label": ["bird", "dog"]})
    test = load(str(tmp_path), split="test")
    assert (values(test), test.labels.tolist(), test.classes) == ([4, 5], [2, 1], ("cat", "dog", "bird"))


def test_labels_that_are_text_in_one_split_and_numbers_in_the_other_are_one_line(tmp_path):
    write_parquet(tmp_path / "train.parquet", {"image": cells(1, 2), "label": ["dog", "cat"]})
    write_parquet(tmp_path / "test.parquet", {"image": cells(3), "label": [1]})
    assert load(str(tmp_path)).classes == ("cat", "dog")
    with pytest.raises(InputError, match="train and test") as error:
        load(str(tmp_path), split="test")
    one_line(error)


@pytest.mark.parametrize(
    "other",
    [
        {"image": [0, 1], "klass": [0, 1]},
        {"picture": [0, 1], "label": [0, 1]},
        {"image": [0, 1], "label": ["a", "b"]},
        {"features": [0.5, 0.5], "label": [0, 1]},
    ],
)
def test_files_of_a_split_with_other_columns_are_one_line(tmp_path, other):
    for name in ("image", "picture"):
        other |= {name: cells(*other[name])} if name in other else {}
    write_parquet(tmp_path / "train-0.parquet", {"image": cells(1, 2), "label": [0, 1]})
    write_parquet(tmp_path / "train-1.parquet", other)
    with pytest.raises(InputError, match=r"train-1\.parquet") as error:
        load(str(tmp_path))
    one_line(error)


def test_numbers_too_large_to_count_classes_by_are_names_of_them(tmp_path):
    pa = pytest.importorskip("pyarrow")
    dates = pa.array([20240131, 2**63, 7, None, 20240131], pa.uint64())
    write_parquet(tmp_path / "train.parquet", {"image": cells(1, 2, 3, 4, 5), "label": dates})
    write_parquet(tmp_path / "test.parquet", {"image": cells(1, 2), "label": pa.array([5, 7], pa.uint64())})
    train, test = load(str(tmp_path)), load(str(tmp_path), split="test")
    assert train.classes == ("7", "20240131", str(2**63))
    assert train.labels.tolist() == [1, 2, 0, -1, 1]
    assert test.labels.tolist() == [3, 0]
    assert test.classes == (*train.classes, "5")


def test_a_table_without_images_does_not_hide_image_files(tmp_path):
    for i in range(4):
        put(tmp_path, f"{'ab'[i % 2]}/{i}.png", i)
    write_parquet(
        tmp_path / "features.parquet", {"image": [0, 1], "name": ["0.png", "1.png"], "features": [[0.5], [1.0]]}
    )
    images = load(str(tmp_path))
    assert sorted(values(images)) == [0, 1, 2, 3]
    assert images.classes == ("a", "b")


def test_images_in_parquet_and_in_files_are_one_line(tmp_path):
    put(tmp_path, "cat/0.png")
    write_parquet(tmp_path / "train.parquet", {"image": cells(1)})
    with pytest.raises(InputError, match=r"train\.parquet.*cat/0\.png") as error:
        load(str(tmp_path))
    one_line(error)


def test_parquet_files_further_down_are_pointed_at(tmp_path):
    write_parquet(tmp_path / "default" / "train" / "0000.parquet", {"image": cells(1)})
    with pytest.raises(InputError, match=r"no image files.*default/train/0000\.parquet") as error:
        load(str(tmp_path))
    one_line(error)


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
