"""Each row of the tables of docs/howto/data.md, done as it says."""

import csv
import io
import json
import re
import shutil
import tarfile
import zipfile
from pathlib import Path

import av
import numpy as np
import pages
import pytest
from pictures import one_line, plain, put
from PIL import Image

from twinblock.config.recipes import compose
from twinblock.core.errors import InputError
from twinblock.data import endings, store
from twinblock.data import huggingface as hf
from twinblock.data.training import split_of

PAGE = (pages.ROOT / "docs" / "howto" / "data.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (.+?) \| `(data=[^`]+)` \| (.+?) \|$", PAGE, re.MULTILINE)
REFUSED_FROM = PAGE.index("## What is refused")
GOOD = [row for row in ROWS if PAGE.index(f"| {row[0]} | `{row[1]}` |") < REFUSED_FROM]
BAD = [row for row in ROWS if row not in GOOD]
PETS = ("animals", ["cat/1.png", "cat/2.png", "dog/3.png"])


def table(path: Path, head: str, *rows: str, sign: str = ",") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row.replace(',', sign)}\n" for row in (head, *rows)))


def folders(home: Path) -> None:
    layouts = {
        "photos": ["a.png", "b.png", "c.png", "x/d.png", "x/e.png", "x/f.png"],
        "animals": PETS[1],
        "cameras": ["cam01/1.png", "cam02/2.png", "cam03/3.png"],
        "splits": ["train/cat/1.png", "train/dog/2.png", "val/dog/3.png"],
        "coco": ["train2017/1.png", "val2017/2.png", "unlabeled2017/3.png"],
        "with_run": ["1.png", "2.png", "runs/simclr/curves.png"],
        "mixed": ["1.png"],
        "damaged": [f"{i}.png" for i in range(30)],
        "broken": ["1.png", "2.png"],
        "imagefolder": ["1.png", "2.png"],
        "mixture": ["1.png", "more/2.png"],
        "twice": ["x/a.png", "y/a.png"],
    }
    for folder, names in layouts.items():
        for i, name in enumerate(names):
            put(home / folder, name, i + 1)
    put(home, "photo.png", 7)
    (home / "with_run/runs/simclr/config.yaml").touch()
    (home / "with_run/runs/simclr/metrics.jsonl").touch()
    for name in ("mixed/b.nii", "mixed/c.cr2", "mixed/d.mp4", "scans/a.nii", "only_heic/a.heic", "empty/notes.txt"):
        (home / name).parent.mkdir(exist_ok=True)
        (home / name).write_bytes(b"something")
    for name in ("damaged/7.png", "broken/2.png"):
        (home / name).write_bytes(b"no image")
    for i, name in enumerate(("clips/fox/a.mp4", "clips/deer/b.mkv")):
        write_video(home / name, [np.full((16, 16, 3), 40 * i + k, np.uint8) for k in range(20)])
    (home / "no_clips").mkdir()
    (home / "no_clips/a.mp4").write_bytes(b"no video")
    table(home / "clips.csv", "path,label", "clips/fox/a.mp4,fox", "clips/deer/b.mkv,deer")
    (home / "phone").mkdir()
    import pillow_heif

    pillow_heif.from_pillow(Image.new("RGB", (64, 48), (200, 30, 30))).save(home / "phone/IMG_1.HEIC")
    (home / "large").mkdir()
    Image.new("1", (10_000, 9_000)).save(home / "large/1.png")


def write_video(path: Path, frames: list[np.ndarray], rate: int = 10) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    codec, pixels = ("ffv1", "bgr0") if path.suffix == ".mkv" else ("libx264", "yuv420p")
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], pixels
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())


def tables(home: Path) -> None:
    table(home / "labels.csv", "file,label", "a.png,cat", "b.png,dog", "c.png,cat", "x/d.png,dog")
    tags = ["a.png,dog;cat", "b.png,cat", "c.png,dog", "x/d.png,dog", "x/e.png,cat", "x/f.png,cat"]
    table(home / "tags.csv", "file,labels", *tags)
    hot = ["a,1,1", "b,1,0", "c,0,1", "d,0,1", "e,1,0", "f,1,-1"]
    table(home / "hot.csv", "id,cat,dog", *hot)
    table(home / "ids.csv", "id,label", "a,1", "b,0", "c,1", "d,0", "e,0", "f,10")
    table(home / "imagefolder/metadata.csv", "file_name,label", "1.png,0", "2.png,1")
    rows = ["photos/a.png,cat,lynx", "photos/b.png,dog,fox", "photos/x/d.png,cat,tabby"]
    table(home / "list.csv", "path,label,species", *rows)
    table(home / "list.tsv", "path,label,species", *rows, sign="\t")
    table(home / "elsewhere.csv", "path,label", "a.png,cat", "x/d.png,dog")
    table(
        home / "parts.csv",
        "path,label,split",
        "photos/a.png,cat,train",
        "photos/b.png,dog,train",
        "photos/c.png,cat,val",
    )
    table(home / "groups.csv", "path,label,group", *(f"photos/{n},{i % 2},{g}" for i, (n, g) in enumerate(SITES)))
    table(home / "weights.csv", "path,weight", "photos/a.png,0", "photos/b.png,3", "photos/c.png,1")
    table(home / "others.csv", "file,label", "u.png,cat", "v.png,dog")
    table(home / "recurring.csv", "file,label", "a.png,cat", "b.png,dog")
    table(home / "contrary.csv", "file,label", "a.png,cat", "a.png,dog")
    table(home / "amounts.csv", "file,label", "a.png,0.25", "b.png,1.5")
    table(home / "nameless.csv", "photos/a.png,cat", "photos/b.png,dog")
    table(home / "ragged.csv", "path,label", "photos/a.png,cat", "photos/b.png,dog,cat")
    table(home / "nowhere.csv", "path", "u.png", "v.png")
    table(home / "remote.csv", "path", "s3://bucket/a.png")
    table(home / "strange.csv", "path,split", "photos/a.png,fold1")
    table(home / "weightless.csv", "path,weight", "photos/a.png,much")
    write_parquet(home / "list.parquet", {"path": [row.split(",")[0] for row in rows], "label": ["cat", "dog", "cat"]})


SITES = [
    ("a.png", "north"),
    ("b.png", "north"),
    ("c.png", "south"),
    ("x/d.png", "south"),
    ("x/e.png", ""),
    ("x/f.png", ""),
]


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def archives(home: Path) -> None:
    folder, names = PETS
    with zipfile.ZipFile(home / "animals.zip", "w") as file:
        for name in names:
            file.write(home / folder / name, f"animals/{name}")
            file.writestr(f"__MACOSX/animals/{name}", b"x")
    with tarfile.open(home / "animals.tar.gz", "w:gz") as file:
        file.add(home / folder, "animals")
    (home / "broken.tar.gz").write_bytes((home / "animals.tar.gz").read_bytes()[:150])
    (home / "shards").mkdir()
    for shard in range(2):
        with tarfile.open(home / f"shards/train-{shard:03}.tar", "w") as file:
            for i in range(3):
                add(file, f"{i:03}.png", plain(shard * 3 + i))
                add(file, f"{i:03}.cls", str(i).encode())
                add(
                    file,
                    f"{i:03}.json",
                    json.dumps({"species": "lynx" if i else "fox", "tags": ["fox", "red"][: i + 1]}).encode(),
                )
    (home / "zips").mkdir()
    for split, names in {"train": ["cat/1.png", "dog/2.png"], "test": ["dog/3.png", "cat/4.png"]}.items():
        with zipfile.ZipFile(home / f"zips/{split}.zip", "w") as file:
            for name in names:
                file.writestr(name, plain(int(name[4])))
    with zipfile.ZipFile(home / "texts.zip", "w") as file:
        file.writestr("notes.txt", "x")
    secret = bytearray((home / "texts.zip").read_bytes())
    secret[secret.index(b"PK\1\2") + 8] |= 1  # the flag of a member that is encrypted
    (home / "secret.zip").write_bytes(secret)


def write_parquet(path: Path, columns: dict) -> None:
    import pyarrow as pa
    from pyarrow import parquet as pq

    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), path)


def data_sets(home: Path) -> None:
    import datasets

    files = [plain(i) for i in range(4)]
    write_parquet(home / "parquet/train.parquet", {"image": files, "label": [0, 1, 0, 1], "age": ["old", "new"] * 2})
    write_parquet(home / "parquet_paths/train.parquet", {"image": ["1.png", "in/2.png"], "label": ["cat", "dog"]})
    put(home / "parquet_paths", "1.png", 1)
    put(home / "parquet_paths", "in/2.png", 2)
    write_parquet(home / "parquet_lists/train.parquet", {"images": [files[:3], files[3:]], "label": [5, 6]})
    pixels = [np.full((8, 8, 3), i, np.uint8).tolist() for i in range(3)]
    write_parquet(home / "parquet_pixels/train.parquet", {"image": pixels, "label": [0, 1, 0]})
    write_parquet(home / "parquet_texts/train.parquet", {"caption": ["a", "b"]})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"image": [{"bytes": plain(i), "path": None} for i in range(4)], "label": [0, 1, 1, 0]}
    one = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": one, "test": one.select([1])}).save_to_disk(str(home / "saved"))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("data")
    for part in (folders, tables, archives, data_sets):
        part(home)
    return home


@pytest.fixture(autouse=True)
def here(home, monkeypatch):
    monkeypatch.chdir(home)
    monkeypatch.setenv("TWINBLOCK_CACHE", str(home / "cache"))
    store.say_once.cache_clear()


def read(written: str, split="train"):
    return split_of(compose("simclr", overrides=written.split()).data, split)


# number of images, their labels, names of classes, words among the warnings, and where classes come from
Expected = dict[str, tuple[int, list[int] | None, tuple[str, ...] | None, str, str | None]]
CAT_DOG = ("cat", "dog")
EXPECTED: Expected = {
    "data=photos/": (6, None, None, "", None),
    "data=animals/": (3, [0, 0, 1], CAT_DOG, "", "top folder: cat, dog"),
    "data=animals/ data.labels=none": (3, None, None, "", None),
    "data=cameras/": (3, [0, 1, 2], ("cam01", "cam02", "cam03"), "", "look like sites or dates"),
    "data=splits/": (2, [0, 1], CAT_DOG, "", "top folder of train: cat, dog"),
    "data=coco/": (1, None, None, "train2017 is for training, val2017 for testing; unlabeled2017 left out", None),
    "data=[photos,animals]": (9, [-1] * 6 + [0, 0, 1], CAT_DOG, "", "top folder: cat, dog"),
    "data=cameras/*/*.png": (3, [0, 1, 2], ("cam01", "cam02", "cam03"), "", "look like sites or dates"),
    "data=cameras/*": (3, None, None, "", None),
    "data=photo.png": (1, None, None, "", None),
    "data=with_run/": (2, None, None, "left out: runs/simclr", None),
    "data=phone/": (1, None, None, "", None),
    "data=mixed/": (1, None, None, "1 .nii files, 1 .cr2 files, 1 .mp4 files are not read", None),
    "data=clips/ data.fps=2": (8, [0] * 4 + [1] * 4, ("deer", "fox"), "", "top folder: deer, fox"),
    "data=clips/ data.fps=0.1": (2, [0, 1], ("deer", "fox"), "", "top folder: deer, fox"),
    "data=clips/fox/a.mp4 data.fps=1": (2, None, None, "", None),
    "data=clips.csv data.fps=1": (4, [1, 1, 0, 0], ("deer", "fox"), "", "column label"),
    "data=large/ data.max_pixels=200000000": (1, None, None, "", None),
    "data=damaged/": (29, None, None, "", None),
    "data=photos/ data.labels=labels.csv": (
        6,
        [0, 1, 0, 1, -1, -1],
        CAT_DOG,
        "2 of 6 images have no label",
        "of labels.csv",
    ),
    "data=photos/ data.labels=ids.csv": (6, [1, 0, 1, 0, 0, 2], ("0", "1", "10"), "", "column label of ids.csv"),
    "data=photos/ data.labels=tags.csv data.separator=;": (6, None, CAT_DOG, "", "column labels of tags.csv"),
    "data=photos/ data.labels=hot.csv": (6, None, CAT_DOG, "", "columns cat, dog of hot.csv"),
    "data=imagefolder/": (2, [0, 1], ("0", "1"), "", "metadata.csv"),
    "data=list.csv": (3, [0, 1, 0], CAT_DOG, "", "column label"),
    "data=list.csv data.labels=species": (3, [1, 0, 2], ("fox", "lynx", "tabby"), "", "column species"),
    "data=list.csv data.labels=none": (3, None, None, "", None),
    "data=elsewhere.csv data.root=photos": (2, [0, 1], CAT_DOG, "", "column label"),
    "data=parts.csv": (2, [0, 1], CAT_DOG, "", "column label"),
    "data=groups.csv": (6, [0, 1] * 3, ("0", "1"), "", "column label"),
    "data=weights.csv": (3, None, None, "", None),
    "data=list.tsv": (3, [0, 1, 0], CAT_DOG, "", "column label"),
    "data=list.parquet": (3, [0, 1, 0], CAT_DOG, "", "column label"),
    "data=animals.zip": (3, [0, 0, 1], CAT_DOG, "", "top folder of animals: cat, dog"),
    "data=animals.tar.gz": (3, [0, 0, 1], CAT_DOG, "", "top folder of animals: cat, dog"),
    "data=shards/": (6, [0, 1, 2] * 2, ("0", "1", "2"), "", ".cls beside the images"),
    "data=shards/ data.labels=species": (6, [0, 1, 1] * 2, ("fox", "lynx"), "", "species of the JSON"),
    "data=shards/ data.labels=tags": (6, None, ("fox", "red"), "", "tags of the JSON"),
    "data=shards/train-{000..001}.tar": (6, [0, 1, 2] * 2, ("0", "1", "2"), "", ".cls beside the images"),
    "data=zips/": (2, [0, 1], CAT_DOG, "", "top folder: cat, dog"),
    "data=parquet/": (4, [0, 1, 0, 1], None, "", "column label"),
    "data=parquet/ data.labels=age": (4, [1, 0, 1, 0], ("new", "old"), "", "column age"),
    "data=parquet_paths/": (2, [0, 1], CAT_DOG, "", "column label"),
    "data=parquet_lists/": (4, [5, 5, 5, 6], None, "", "column label"),
    "data=parquet_pixels/": (3, [0, 1, 0], None, "", "column label"),
    "data=parquet/train.parquet": (4, [0, 1, 0, 1], None, "", "column label"),
    "data=saved/": (4, [0, 1, 1, 0], CAT_DOG, "", "column label"),
}
ELSEWHERE = ("data=user/name", "data=cifar10 data.root=cifar/")  # below, and tests/data/test_torchvision_sets.py


def test_every_row_has_a_test():
    assert {written for _, written, _ in GOOD} == {*EXPECTED, *ELSEWHERE}
    assert len(ROWS) >= 60 and len(BAD) >= 20


@pytest.mark.parametrize("written", list(EXPECTED))
def test_what_is_written_gives_what_is_said(written, caplog):
    count, labels, classes, words, classes_from = EXPECTED[written]
    images = read(written)
    assert len(images) == count
    assert (None if images.labels is None else images.labels.tolist()) == labels
    assert images.classes == classes
    assert words in " ".join(caplog.messages)
    if not words:
        assert caplog.messages == []
    assert (classes_from or "") in (images.classes_from or "") and bool(classes_from) == bool(images.classes_from)
    assert len(read(written).batch(range(count))) == count  # from the cache


@pytest.mark.parametrize(
    ("written", "labels"),
    [
        ("data=splits/", [1]),
        ("data=coco/", None),
        ("data=parts.csv", [0]),
        ("data=zips/", [1, 0]),
        ("data=saved/", [1]),
    ],
)
def test_test_splits(written, labels):
    test = read(written, "test")
    assert (None if test.labels is None else test.labels.tolist()) == labels


@pytest.mark.parametrize(
    "written", ["data=photos/", "data=animals.zip", "data=list.csv", "data=shards/", "data=cameras/*"]
)
def test_others_have_no_test_split(written):
    assert read(written, "test") is None


def test_pixels_are_those_of_the_row():
    firsts = lambda written: read(written).pixels[:, 0, 0, 0].tolist()  # noqa: E731
    assert firsts("data=[photos,animals]") == [1, 2, 3, 4, 5, 6, 1, 2, 3]
    assert firsts("data=list.csv") == [1, 2, 4]
    assert firsts("data=shards/") == [0, 1, 2, 3, 4, 5]
    assert firsts("data=animals.zip") == [1, 2, 3]
    assert firsts("data=parquet_lists/") == [0, 1, 2, 3]
    assert firsts("data=parquet_pixels/") == [0, 1, 2]
    assert firsts("data=parquet_paths/") == [1, 2]
    assert abs(int(read("data=phone/").pixels[0, 20, 20, 0]) - 200) < 10


def test_several_classes_an_image_are_kept():
    both = [[1, 1], [1, 0], [0, 1], [0, 1], [1, 0], [1, 0]]
    assert read("data=photos/ data.labels=tags.csv data.separator=;").indicators.tolist() == both
    assert read("data=photos/ data.labels=hot.csv").indicators.tolist() == [*both[:5], [1, -1]]


def test_groups_and_weights_are_kept():
    assert read("data=groups.csv").groups.tolist() == [0, 0, 1, 1, -1, -1]
    assert read("data=weights.csv").weights.tolist() == [0, 3, 1]


def test_a_name_of_the_hub(monkeypatch):
    import datasets

    found = datasets.load_from_disk("saved")
    monkeypatch.setattr(hf, "_downloaded", lambda _, name, *__: found if name == "user/name" else None)
    assert read("data=user/name").labels.tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize(("written", "said"), [(written, said) for _, written, said in BAD])
def test_what_is_refused_says_so_in_one_line(written, said, monkeypatch):
    if "heic" in written:
        monkeypatch.setattr(endings, "reads_heif", lambda: False)
    with pytest.raises(InputError, match=re.escape(said)) as error:
        read(written)
    assert len(one_line(error)) < 400


def test_large_images_are_left_out_and_the_field_is_named():
    shutil.copy("photo.png", "large/2.png")
    with pytest.raises(InputError, match=r"more than 89478485 pixels; data.max_pixels=N"):
        read("data=large/")
    Path("large/2.png").unlink()


def test_every_table_was_written_as_a_table(home):
    """The helper writes what a spreadsheet would."""
    with open(home / "list.csv", newline="") as file:
        assert next(csv.DictReader(file)) == {"path": "photos/a.png", "label": "cat", "species": "lynx"}
