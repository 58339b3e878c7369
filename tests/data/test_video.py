"""Frames of videos are taken at their times, upright and in their colours; those of a video stay together."""

import struct
from pathlib import Path

import av
import numpy as np
import pytest
from pictures import one_line, put

import twinblock
from twinblock.config.data import Data
from twinblock.core.errors import InputError
from twinblock.data import video
from twinblock.data.training import training
from twinblock.evaluation.labelled import labelled

RATE, COUNT = 10, 30  # of most videos here, which last 3 seconds
HEIGHT, WIDTH = 16, 24
LOSSLESS = {  # ending: codec, its pixels, its options
    "mkv": ("ffv1", "bgr0", {}),
    "avi": ("ffv1", "bgr0", {}),
    "mp4": ("libx264rgb", "rgb24", {"qp": "0"}),
    "mov": ("libx264rgb", "rgb24", {"qp": "0"}),
}


def pictures(seed: int, count: int = COUNT) -> np.ndarray:
    """Frames of noise about a colour that rises with time."""
    noise = np.random.default_rng(seed).integers(0, 60, (count, HEIGHT, WIDTH, 3))
    return (noise + 6 * np.arange(count)[:, None, None, None]).astype(np.uint8)


def write(path: Path, frames: np.ndarray, rate: int = RATE, kind: tuple | None = None, times=None) -> np.ndarray:
    codec, pixels, options = kind or LOSSLESS[path.suffix[1:]]
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixels
        for i, one in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(one, format="rgb24" if one.ndim == 3 else "gray16le")
            frame.pts = i if times is None else times[i]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return frames


def see(source: Path, fps: float | None = 1, **fields):
    return training(Data(source=str(source), fps=fps, **fields))


@pytest.mark.parametrize("ending", LOSSLESS)
@pytest.mark.parametrize(("fps", "taken"), [(1, [0, 10, 20]), (0.5, [0, 20]), (4, [0, 3, 5, 8, 10]), (10, range(30))])
def test_frames_are_those_of_their_times(tmp_path, ending, fps, taken):
    frames = write(tmp_path / "clips" / f"a.{ending}", pictures(0))
    images = see(tmp_path / "clips", fps)
    assert len(images) == {1: 3, 0.5: 2, 4: 12, 10: 30}[fps]
    for row, i in enumerate(taken):
        assert images.names[row] == f"a.{ending}@{i / RATE:.3f}s"
        assert np.array_equal(images.batch([row])[0].numpy(), frames[i])
    assert np.allclose(images.parts["time"][: len(taken)], np.array(taken) / RATE)


@pytest.mark.parametrize(("ending", "codec"), [("mp4", "libx264"), ("webm", "libvpx-vp9"), ("avi", "mpeg4")])
def test_usual_codecs_give_the_colours_to_a_few_levels(tmp_path, ending, codec):
    colours = np.array([(200, 30, 30), (30, 180, 40), (40, 50, 220)], np.uint8)
    frames = np.repeat(colours, 10, 0)[:, None, None] + np.zeros((1, HEIGHT, WIDTH, 1), np.uint8)
    write(tmp_path / f"a.{ending}", frames, kind=(codec, "yuv420p", {}))
    seen = see(tmp_path / f"a.{ending}").batch([0, 1, 2]).numpy().astype(int)
    assert np.abs(seen - frames[::10]).max() <= 8


def test_frames_that_come_unevenly_are_taken_once_each_part(tmp_path):
    """Ten frames in the first tenth of a second, then one each second and a half."""
    times = [*range(10), *(150 * i for i in range(1, 5))]
    write(tmp_path / "a.mkv", pictures(0, 14), rate=100, times=times)
    found = [f"{time:.1f}" for time, _ in video.frames(str(tmp_path / "a.mkv"), 1)]
    assert found == ["0.0", "1.5", "3.0", "4.5", "6.0"]


@pytest.mark.parametrize("ending", ["mkv", "mp4"])
def test_thirty_frames_a_second_are_thirty_in_rounded_times(tmp_path, ending):
    write(tmp_path / f"a.{ending}", pictures(0, 40), rate=30)
    assert sum(1 for _ in video.frames(str(tmp_path / f"a.{ending}"), 30)) == 40


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_a_video_is_seen_upright(tmp_path, quarters):
    """The matrix of a track header says how a player turns it, a quarter clockwise as (0 1; -1 0) (ISO 14496-12)."""
    frames = write(tmp_path / "a.mp4", pictures(0))
    a, b = [(1, 0), (0, 1), (-1, 0), (0, -1)][quarters]
    matrix = struct.pack(">9i", a << 16, b << 16, 0, -b << 16, a << 16, 0, 0, 0, 1 << 30)
    content = bytearray((tmp_path / "a.mp4").read_bytes())
    place = content.index(b"tkhd") + 4 + 40
    assert content[place : place + 36] == struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    content[place : place + 36] = matrix
    (tmp_path / "a.mp4").write_bytes(content)
    expected = np.rot90(frames[10], -quarters)
    assert video.header(str(tmp_path / "a.mp4")).size == expected.shape[:2]
    assert np.array_equal([*video.frames(str(tmp_path / "a.mp4"), 1)][1][1], expected)


@pytest.fixture
def clips(tmp_path):
    """Ten videos in folders of two classes."""
    for i in range(10):
        write(tmp_path / "clips" / ("fox", "deer")[i % 2] / f"{i}.mkv", pictures(i))
    return tmp_path / "clips"


def test_frames_of_a_video_have_its_folder_as_class_and_are_tested_together(clips):
    images = see(clips, 2)
    assert len(images) == 60 and images.classes == ("deer", "fox")
    assert [images.classes[i] for i in images.labels] == [name.partition("/")[0] for name in images.names]
    train, test = labelled(Data(source=str(clips), fps=2), seed=0)
    assert not set(train.groups) & set(test.groups)
    assert len(train) == 48 and len(test) == 12
    video_of = [name.partition("@")[0] for name in images.names]
    assert len({*zip(video_of, images.groups.tolist(), strict=True)}) == 10


def test_a_table_labels_videos_and_groups_them(clips):
    rows = [f"{('fox', 'deer')[i % 2]}/{i}.mkv,kind{i % 3},{f'site{i}' if i < 4 else ''}" for i in range(10)]
    (clips / "list.csv").write_text("\n".join(["path,label,group", *rows]))
    images = see(clips / "list.csv", 1)
    assert [f"kind{int(name[name.index('/') + 1]) % 3}" for name in images.names] == [
        images.classes[i] for i in images.labels
    ]
    assert len(np.unique(images.groups)) == 10 and images.groups.min() >= 0


def test_photographs_beside_videos_are_groups_of_their_own(clips):
    put(clips, "fox/photo.png", 9)
    images = see(clips, 1)
    (row,) = [i for i, name in enumerate(images.names) if name == "fox/photo.png"]
    assert images.groups[row] == -1 and np.isnan(images.parts["time"][row])
    assert (np.delete(images.groups, row) >= 0).all()


def test_a_run_on_videos_embeds_names_and_times(clips, tmp_path):
    overrides = ["data.fps=1", "encoder.kind=resnet10", "encoder.width=8", "data.batch=8", "projector.dims=[16,8]"]
    overrides += ["train.length=1steps", "train.precision=fp32", "data.size=16"]
    run = twinblock.pretrain("simclr", data=str(clips), out=tmp_path / "run", overrides=overrides, quiet=True)
    twinblock.embed(run, out=tmp_path / "run" / "embeddings.npz")
    table = np.load(tmp_path / "run" / "embeddings.npz")
    assert table["time"].tolist() == [0, 1, 2] * 10
    assert set(table["name"]) == {f"{('fox', 'deer')[i % 2]}/{i}.mkv" for i in range(10)}
    assert twinblock.evaluate(run, quiet=True) and run.evaluation["test"] == 6


def test_a_damaged_video_is_listed_and_the_others_are_used(clips):
    (clips / "fox" / "bad.mp4").write_bytes(b"no video")
    whole = (clips / "deer" / "1.mkv").read_bytes()
    (clips / "fox" / "list.mp4").write_bytes(b"#EXTM3U\n#EXTINF:1,\n/etc/hosts\n")
    images = see(clips, 10)
    assert len(images) == 300 and [name for name, _ in images.skipped] == ["fox/bad.mp4", "fox/list.mp4"]
    (clips / "deer" / "1.mkv").write_bytes(whole)


@pytest.mark.parametrize("ending", ["avi", "mkv"])
def test_a_video_that_breaks_off_gives_the_frames_before_and_is_listed(clips, ending):
    file = clips / f"fox/a.{ending}"
    frames = write(file, pictures(0))
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    images = see(clips, 10)
    ((name, why),) = images.skipped
    assert name == f"fox/a.{ending}" and why and (ending == "avi" or "ends at 1.3 of 3.0 s; the frames before" in why)
    rows = [i for i, one in enumerate(images.names) if one.startswith(name)]
    assert 10 < len(rows) < 20
    assert np.array_equal(images.batch(rows).numpy(), frames[: len(rows)])


def test_a_damaged_frame_ends_a_video(tmp_path):
    write(tmp_path / "a.mkv", pictures(0), kind=("mpeg4", "yuv420p", {}))
    content = bytearray((tmp_path / "a.mkv").read_bytes())
    content[len(content) // 2 : len(content) // 2 + 40] = bytes(40)
    (tmp_path / "a.mkv").write_bytes(content)
    found = []
    with pytest.raises(ValueError, match=r"damaged from \d\.\d s on; the frames before are used"):
        found.extend(video.frames(str(tmp_path / "a.mkv"), 10))
    assert 5 < len(found) < 20


def test_deep_frames_are_told(tmp_path, caplog):
    write(tmp_path / "deep" / "a.mkv", pictures(0), kind=("ffv1", "yuv420p10le", {}))
    assert len(see(tmp_path / "deep")) == 3 and "a.mkv has more than 8 bits, of which 8 are seen" in caplog.text
    grey = (np.arange(COUNT * HEIGHT * WIDTH) * 7 % 4096).reshape(COUNT, HEIGHT, WIDTH).astype(np.uint16)
    write(tmp_path / "grey" / "a.mkv", grey, kind=("ffv1", "gray16le", {}))
    with pytest.raises(InputError, match="grey of 16 bits, of which 8 would be left: write its frames to TIFF"):
        see(tmp_path / "grey")


def test_what_is_missing_is_one_line(clips, caplog, monkeypatch):
    for source in (clips, clips / "fox" / "0.mkv"):
        with pytest.raises(InputError, match=r"\.mkv files.*data\.fps=1 takes one frame a second") as error:
            see(source, None)
        one_line(error)
    put(clips, "a.png")
    assert len(see(clips, None)) == 1 and "10 .mkv files are not read; data.fps=1 takes" in caplog.text
    with pytest.raises(InputError, match="tile and fps do not go together") as error:
        twinblock.pretrain("simclr", data={"source": str(clips), "fps": 1, "tile": {"size": 8}}, quiet=True)
    one_line(error)
    monkeypatch.setattr(video, "installed", lambda: False)
    with pytest.raises(InputError, match=r'1.mkv and other videos need: pip install "twinblock\[video\]"') as error:
        see(clips)
    one_line(error)


def test_one_frame_is_held(tmp_path, monkeypatch):
    """While a video is packed, the frames that wait are of 16 MB at most, and of 3 at a time here."""
    from twinblock.data import packing

    write(tmp_path / "a.mkv", pictures(0))
    monkeypatch.setattr(packing, "HELD", 2 * HEIGHT * WIDTH * 3)
    chunks = []
    together = packing._together
    monkeypatch.setattr(packing, "_together", lambda *given: (chunks.append(len(c)) or c for c in together(*given)))
    assert len(see(tmp_path / "a.mkv", 10)) == 30 and set(chunks) == {3}
