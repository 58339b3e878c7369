"""Folders of images, and names that are no source."""

import errno
import os

import pytest
from pictures import one_line, plain, put, values
from PIL import Image

from twinblock.core.errors import InputError
from twinblock.data import load


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
def test_no_labels_where_many_images_are_loose_or_there_is_one_class(photos, also):
    put(photos, "cat/0.png")
    put(photos, also)
    if also == "loose.png":
        put(photos, "dog/1.png")
    assert load(str(photos)).labels is None


@pytest.mark.parametrize(("loose", "labelled"), [(1, True), (2, False)])
def test_a_tenth_of_loose_images_makes_a_folder_one_without_classes(photos, loose, labelled):
    for i in range(9):
        put(photos, f"{'ab'[i % 2]}/{i}.png")
    for i in range(loose):
        put(photos, f"{i} preview.png", 9)
    images = load(str(photos))
    assert len(images) == 9 + loose
    if labelled:
        assert images.labels.tolist() == [-1] + [0] * 5 + [1] * 4 and values(images)[0] == 9
    else:
        assert images.labels is None


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
        file.write(plain(7))
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
        (photos / name).write_bytes(plain(0, side, side))
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
    (tmp_path / "a.txt").touch()
    with pytest.raises(InputError, match="give the folder"):
        load(str(tmp_path / "a.txt"))


def test_an_image_file_is_a_set_of_one(tmp_path):
    put(tmp_path, "a.PNG", 7)
    images = load(str(tmp_path / "a.PNG"))
    assert (values(images), list(images.names), images.labels) == ([7], ["a.PNG"], None)
    assert load(str(tmp_path / "a.PNG"), split="test") is None
    (tmp_path / "b.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="1 of 1 images cannot be read") as error:
        load(str(tmp_path / "b.png"))
    one_line(error)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("cifar01", "cifar10"), ("cifar_100", "cifar100"), ("stl-10", "stl10"), ("photodigit", "photodigits")],
)
def test_a_misspelt_name_names_the_nearest(typed, meant):
    with pytest.raises(InputError, match=f"'{meant}'.*folder.*Hugging Face") as error:
        load(typed)
    one_line(error)


def test_where_labels_come_from_is_said(photos):
    for site in range(5):
        put(photos, f"cam{site:02}/0.png")
    assert load(str(photos)).classes_from == "top folder: cam00, cam01, cam02, ... (5), which look like sites or dates"


def test_the_folder_of_a_run_is_no_data(photos, caplog):
    for name in ("cat/0.png", "dog/0.png", "runs/simclr/curves.png", "runs/simclr/checkpoint/a.png"):
        put(photos, name)
    (photos / "runs/simclr/config.yaml").touch()
    for _ in range(2):
        images = load(str(photos))
        assert (len(images), images.classes) == (2, ("cat", "dog"))
    (line,) = caplog.messages
    assert "left out: runs/simclr" in line


def test_files_of_formats_that_are_not_read_are_counted(photos, caplog):
    put(photos, "a.png", 1)
    for name in ("b.CR2", "c.cr2", "d.CZI", "scan.nii.gz", "notes.txt"):
        (photos / name).touch()
    for _ in range(2):  # packed, and from the cache
        load(str(photos))
    (line,) = caplog.messages
    assert "2 .cr2 files, 1 .czi files, 1 .nii files are not read; develop them to TIFF or JPEG" in line


def test_a_folder_of_such_files_alone_names_them(photos):
    (photos / "a.czi").touch()
    with pytest.raises(InputError, match=r"no image files in .*, but 1 \.czi files: convert them") as error:
        load(str(photos))
    one_line(error)


def test_a_folder_named_as_a_built_in_set_is_mentioned(photos, monkeypatch, caplog):
    monkeypatch.chdir(photos)
    put(photos, "photodigits/a.png", 7)
    assert len(load("photodigits")) == 5752
    assert "write ./photodigits" in caplog.text
    assert values(load("./photodigits")) == [7]


@pytest.mark.parametrize("function", ["stat", "listdir"])
def test_a_folder_that_may_not_be_entered_or_listed_is_one_line(photos, monkeypatch, function):
    put(photos, "a.png")

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(photos))

    monkeypatch.setattr(os, function, refuse)
    with pytest.raises(InputError, match=r"(may not be entered|cannot list the folder) .Permission denied.") as error:
        load(str(photos))
    one_line(error)
