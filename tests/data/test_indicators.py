"""Several classes an image: from a CSV, from Hugging Face's lists, from Python; what is not known stays so."""

import io
import json
import tarfile

import numpy as np
import pytest
from pictures import cells, one_line, plain, put, write_parquet

from twinblock.config.recipes import compose
from twinblock.core.errors import InputError
from twinblock.data import columns_of, load, take
from twinblock.data.objects import images_from
from twinblock.data.training import split_of, training

PIXELS = np.zeros((4, 8, 8, 3), np.uint8)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate("abcd"):
        put(tmp_path, f"photos/{name}.png", i)
    return tmp_path


def loaded(*overrides: str):
    return training(compose("simclr", overrides=["data=photos", *overrides]).data)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("file,labels\na.png,dog|cat\nb.png,cat\nc.png,\n", "data.separator=|"),
        ("file\tlabels\na.png\tdog; cat\nb.png\tcat\nc.png\t\n", "data.separator=;"),
        ("file,labels\na.png,dog cat\nb.png,cat\nc.png,\n", "data.separator= "),
        ("file,label\na.png,dog\nb.png,cat\na.png,cat\n", "data.separator=|"),  # a row for each class of an image
        ("file,cat,dog\na.png,1,1\nb.png,1,0.0\nc.png,-1,\n", ""),
    ],
)
def test_a_csv_gives_the_classes_and_what_it_does_not_say_is_not_known(home, text, field):
    name = "tags.tsv" if "\t" in text else "tags.csv"
    (home / name).write_text(text)
    images = loaded(f"data.labels={name}", *([field] if field else []))
    assert images.labels is None and images.classes == ("cat", "dog")
    assert images.indicators.tolist() == [[1, 1], [1, 0], [-1, -1], [-1, -1]]
    assert images.indicators.dtype == np.int8 and f"of {name}" in images.classes_from


def test_a_table_of_paths_has_them_in_a_column_and_other_columns_are_no_classes(home):
    rows = ("path,tags,split", "photos/a.png,2 10,train", "photos/b.png,2,train", "photos/c.png,3,val")
    (home / "list.csv").write_text("\n".join(rows))
    data = compose("simclr", overrides=["data=list.csv", "data.labels=tags", "data.separator= "]).data
    train, test = training(data), split_of(data, "test")
    assert train.classes == test.classes == ("2", "3", "10")  # numbers in their own order, of both splits
    assert (train.indicators.tolist(), test.indicators.tolist()) == ([[1, 0, 1], [1, 0, 0]], [[0, 1, 0]])
    (home / "hot.csv").write_text("file,age,cat,dog,group\na.png,31,1,0,1\nb.png,7,0,1,1\n")
    assert loaded("data.labels=hot.csv").classes == ("cat", "dog")


def test_parts_and_tables_of_images_have_them(home):
    (home / "tags.csv").write_text("file,labels\na.png,dog|cat\nb.png,cat\n")
    images = loaded("data.labels=tags.csv", "data.separator=|")
    assert columns_of(images, np.array([1, 0, 2]))["classes"] == ["cat", "cat|dog", ""]
    assert take(images, np.array([1])).indicators.tolist() == [[1, 0]]
    assert take(images, np.array([2, 3])).indicators is None
    assert "2 classes, several an image" in repr(images)
    marks = {json.dumps(one.fingerprint()) for one in (images, loaded("data.labels=none"), loaded())}
    assert len(marks) == 2  # without labels and without a CSV it is the same


@pytest.mark.parametrize(
    ("text", "fields", "words"),
    [
        ("file,label\na.png,cat\n", ["data.separator=|", "data.labels=none"], None),
        ("file,label\na.png,\n", ["data.separator=|"], "column label of tags.csv is empty"),
        ("file,label\na.png,1.5|2\n", ["data.separator=|"], "column label holds 1.5, an amount"),
        ("file,cat,dog\na.png,1,0\na.png,0,1\n", [], "two rows of a.png give it other classes"),
        ("file,cat,dog\nz.png,1,0\n", [], "names none of the 4 images"),
        ("file,cat,dog\na.png,1,yes\n", [], "no column is called label"),
    ],
)
def test_a_csv_of_something_else_is_one_line(home, text, fields, words):
    (home / "tags.csv").write_text(text)
    if words is None:
        assert loaded("data.labels=tags.csv", *fields).indicators is None
        return
    with pytest.raises(InputError, match=words) as error:
        loaded("data.labels=tags.csv", *fields)
    one_line(error)


def test_a_separator_for_nothing_is_one_line(home):
    with pytest.raises(InputError, match=r"data.separator='\|': photos has no classes in a column of a CSV") as error:
        loaded("data.separator=|")
    one_line(error)
    with pytest.raises(InputError, match=r"data\.separator"):
        loaded("data.separator=")


LISTS = {
    "numbers": ([[2, 0], [1], [], None], [[1, 0, 1], [0, 1, 0], [0, 0, 0], [-1, -1, -1]], None),
    "text": ([["dog", "ant"], ["cat"], [], None], [[1, 0, 1], [0, 1, 0], [0, 0, 0], [-1] * 3], ("ant", "cat", "dog")),
    "indicators": ([[0, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, -1]], [[0, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, -1]], None),
}


@pytest.mark.parametrize("kind", LISTS)
def test_lists_in_a_column_of_hugging_face_are_classes(tmp_path, kind):
    lists, matrix, names = LISTS[kind]
    write_parquet(tmp_path / "train.parquet", {"image": cells(1, 2, 3, 4), "labels": lists})
    images = load(str(tmp_path))
    assert (images.indicators.tolist(), images.classes, images.labels) == (matrix, names, None)
    assert images.classes_from == "column labels"


def test_lists_of_class_labels_have_names_and_a_named_column_wins(tmp_path):
    pa = pytest.importorskip("pyarrow")
    named = {"tags": {"feature": {"names": ["cat", "dog", "emu"], "_type": "ClassLabel"}, "_type": "List"}}
    named["image"] = {"_type": "Image"}
    columns = {"image": cells(1, 2), "tags": pa.array([[0, 1], [1]], pa.list_(pa.int64())), "label": [7, 8]}
    write_parquet(tmp_path / "train.parquet", columns, named)
    assert load(str(tmp_path)).labels.tolist() == [7, 8]
    images = load(str(tmp_path), labels="tags")
    assert images.indicators.tolist() == [[1, 1, 0], [0, 1, 0]] and images.classes == ("cat", "dog", "emu")


def test_classes_of_both_splits_are_numbered_alike_and_a_damaged_image_moves_no_label(tmp_path):
    broken = [*cells(1), {"bytes": b"no image", "path": None}, *cells(*range(2, 40))]
    lists = [["dog"], ["emu"], ["cat", "dog"], *([["cat"]] * 37)]
    write_parquet(tmp_path / "train.parquet", {"image": broken, "label": lists})
    write_parquet(tmp_path / "test.parquet", {"image": cells(4, 5), "label": [["ant", "dog"], ["cat"]]})
    train, test = load(str(tmp_path)), load(str(tmp_path), split="test")
    assert train.indicators[:2].tolist() == [[0, 1, 0], [1, 1, 0]] and len(train) == 39
    assert (train.classes, test.classes) == (("cat", "dog", "emu"), ("cat", "dog", "emu", "ant"))  # a new one is last
    assert test.indicators.tolist() == [[0, 1, 0, 1], [1, 0, 0, 0]]


def shard(path, *samples) -> None:
    """A shard as WebDataset writes it: an image, and a JSON beside it, of each sample; None for no JSON."""
    with tarfile.open(path, "w") as archive:
        for i, fields in enumerate(samples):
            members = {f"{i:04}.png": plain(i)} | (
                {} if fields is None else {f"{i:04}.json": json.dumps(fields).encode()}
            )
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize("kind", LISTS)
def test_lists_in_the_json_of_a_shard_are_classes(tmp_path, kind):
    lists, matrix, names = LISTS[kind]
    shard(tmp_path / "train-000.tar", *({"labels": row} if row is not None else None for row in lists))
    images = load(str(tmp_path))
    assert (images.indicators.tolist(), images.classes, images.labels) == (matrix, names, None)
    assert images.classes_from == "labels of the JSON beside the images"


def test_shards_of_both_splits_are_numbered_alike_and_a_text_is_a_list_of_one(tmp_path):
    shard(tmp_path / "train-000.tar", {"tags": ["dog", " cat "]}, {"tags": "emu"})
    shard(tmp_path / "train-001.tar", {"tags": []}, {"tags": [["cat"]]})  # the last is no list of classes
    shard(tmp_path / "test-000.tar", {"tags": ["ant", "dog"]})
    train, test = (load(str(tmp_path), split=split, labels="tags") for split in ("train", "test"))
    assert (train.classes, test.classes) == (("cat", "dog", "emu"), ("cat", "dog", "emu", "ant"))
    assert train.indicators.tolist() == [[1, 1, 0], [0, 0, 1], [0, 0, 0], [-1, -1, -1]]
    assert test.indicators.tolist() == [[0, 1, 0, 1]]
    assert load(str(tmp_path), labels="none").indicators is None


def test_of_a_shard_another_label_is_another_set(tmp_path):
    found = []
    for one in (["dog"], ["cat"]):
        shard(tmp_path / "train-000.tar", {"tags": one}, {"tags": ["dog", "cat"]})
        found.append(load(str(tmp_path), labels="tags").indicators.tolist())
    assert found == [[[0, 1], [1, 1]], [[1, 0], [1, 1]]]


def several_sources(tmp_path) -> list[str]:
    write_parquet(tmp_path / "a/train.parquet", {"image": cells(1, 2), "labels": [["dog"], ["cat", "dog"]]})
    write_parquet(tmp_path / "a/test.parquet", {"image": cells(3), "labels": [["ant", "cat"]]})
    (tmp_path / "b").mkdir()
    shard(tmp_path / "b/train-000.tar", {"labels": ["emu", "dog"]}, None)
    shard(tmp_path / "b/test-000.tar", {"labels": ["emu"]})
    return [str(tmp_path / "a"), str(tmp_path / "b")]


def test_joined_sources_have_the_classes_of_all(tmp_path):
    """What a source has no class for is not known of its images."""
    train, test = (load(several_sources(tmp_path / split), split=split) for split in ("train", "test"))
    assert (train.classes, test.classes) == (("cat", "dog", "emu"), ("cat", "dog", "emu", "ant"))
    assert train.indicators.tolist() == [[0, 1, -1], [1, 1, -1], [-1, 1, 1], [-1, -1, -1]]
    assert test.indicators.tolist() == [[1, 0, -1, 1], [-1, 0, 1, -1]]


def test_joined_sources_of_numbers_keep_them(tmp_path):
    pa = pytest.importorskip("pyarrow")
    for name, rows in {"a": [[0], [1]], "b": [[2, 0]]}.items():
        write_parquet(tmp_path / f"{name}/train.parquet", {"image": cells(*range(len(rows))), "labels": rows})
    images = load([str(tmp_path / "a"), str(tmp_path / "b")])
    assert (images.indicators.tolist(), images.classes) == ([[1, 0, -1], [0, 1, -1], [1, 0, 1]], None)
    named = {"labels": {"feature": {"names": ["x", "y"], "_type": "ClassLabel"}, "_type": "List"}}
    columns = {"image": cells(5, 6), "labels": pa.array([[1], [0, 1]], pa.list_(pa.int64()))}
    write_parquet(tmp_path / "c/train.parquet", columns, named | {"image": {"_type": "Image"}})
    images = load([str(tmp_path / "c"), str(tmp_path / "c")])
    assert images.classes == ("x", "y") and images.indicators.tolist() == [[0, 1], [1, 1]] * 2


@pytest.mark.parametrize("pattern", [False, True])
def test_joined_sources_of_lists_and_of_folders_are_one_line_and_none_leaves_labels_out(tmp_path, pattern):
    sources = several_sources(tmp_path)
    put(tmp_path, "c/cat/1.png", 1)
    put(tmp_path, "c/dog/2.png", 2)
    given = str(tmp_path / "[ac]") if pattern else [sources[0], str(tmp_path / "c")]
    with pytest.raises(
        InputError, match=r"c has no lists of classes as others have; data\.labels=none leaves"
    ) as error:
        load(given)
    one_line(error)
    images = load(given, labels="none")
    assert len(images) == 4 and images.labels is None and images.indicators is None


@pytest.mark.parametrize(
    ("labels", "matrix", "names"),
    [
        (np.array([[1, 0], [0, 1], [1, 1], [-1, 0]]), [[1, 0], [0, 1], [1, 1], [-1, 0]], None),
        (np.array([[True, False]] * 4), [[1, 0]] * 4, None),
        ([["b", "a"], ["a"], None, []], [[1, 1], [1, 0], [-1, -1], [0, 0]], ("a", "b")),
        ([{1}, {0, 1}, None, set()], [[0, 1], [1, 1], [-1, -1], [0, 0]], None),
    ],
)
def test_labels_of_an_array_in_python(labels, matrix, names):
    images = images_from((PIXELS, labels))
    assert (images.indicators.tolist(), images.classes, images.labels) == (matrix, names, None)


def test_labels_of_a_list_of_files_stay_with_them(home):
    (home / "photos/b.png").write_bytes(b"no image")
    names = [f"photos/{name}.png" for name in "dbca"] + ["photos/a.png"] * 20
    images = images_from((names, [["x"], ["y"], ["x", "z"], [], *[["z"]] * 20]))
    assert images.names[:3].text is not None and len(images) == 23
    assert images.indicators[:4].tolist() == [[1, 0, 0], [1, 0, 1], [0, 0, 0], [0, 0, 1]]
    assert images.classes == ("x", "y", "z")
