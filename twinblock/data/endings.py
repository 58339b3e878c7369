"""Which files are read, by the ending of their names, and what to do with those that are not."""

import functools
from collections import Counter
from collections.abc import Iterable
from importlib.util import find_spec

IMAGES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".dcm", ".dicom"),
)
ARRAYS = ".npy"  # images where there are no others: beside pictures they are labels or features
HEIF = (".heic", ".heif")  # by the extra `heif`
TABLES = (".csv", ".tsv")
ARCHIVES = (".tar", ".tgz", ".tar.gz", ".zip")
RAW = (".cr2", ".cr3", ".crw", ".nef", ".arw", ".dng", ".raf", ".orf", ".rw2", ".pef", ".srw")
SLIDES = (".svs", ".ndpi")  # by the extra `slides`
VIDEOS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".mts", ".wmv", ".3gp")  # by `data.fps`
UNREAD = {  # pictures of phones, cameras, hospitals and microscopes, drawings and videos: they are counted
    **dict.fromkeys(RAW, "develop them to TIFF or JPEG, as `darktable-cli` or `dcraw -T` do"),
    **dict.fromkeys((".nii", ".mha", ".mhd", ".nrrd"), "convert their slices to PNG by SimpleITK"),
    **dict.fromkeys((".mrxs", ".scn", ".bif", ".vsi"), "convert them to tiled TIFF by bioformats2raw or libvips"),
    **dict.fromkeys((".czi", ".lif", ".nd2", ".lsm", ".oib", ".oif"), "convert them to TIFF by bioio"),
    **dict.fromkeys(VIDEOS, "data.fps=1 takes one frame a second of them"),
    **dict.fromkeys((".jxl", ".fits", ".fit", ".exr", ".hdr", ".tga", ".psd", ".xcf", ".svg", ".ico"), ""),
    **dict.fromkeys((ARRAYS, ".npz"), "give the array in Python: data=array"),
}
CONVERT = "convert them to PNG or JPEG"


@functools.cache
def reads_slides() -> bool:
    return find_spec("tiffslide") is not None


@functools.cache
def reads_heif() -> bool:
    return find_spec("pillow_heif") is not None


def is_image(name: str, videos: bool = False) -> bool:
    """Whether a file of this name is read; `videos`: those are, too."""
    read = (*IMAGES, *(HEIF if reads_heif() else ()), *(SLIDES if reads_slides() else ()))
    return name.lower().endswith(read) or (videos and is_video(name))


def is_video(name: str) -> bool:
    return name.lower().endswith(VIDEOS)


def is_slide(name: str) -> bool:
    return name.lower().endswith(SLIDES)


def unread(name: str) -> str:
    """The ending of a picture or video that is not read; empty for all other files."""
    name = name.lower().removesuffix(".gz")
    ending = name[name.rfind(".") :] if "." in name else ""
    missing = (*(() if reads_heif() else HEIF), *(() if reads_slides() else SLIDES))
    return ending if ending in UNREAD or ending in missing else ""


def counted(endings: Counter[str]) -> str:
    """`200 .heic files, 3 .dcm files`."""
    return ", ".join(f"{count:,} {ending} files" for ending, count in endings.most_common(3))


def remedy(endings: Iterable[str]) -> str:
    """What to do with files of these endings, the most frequent first."""
    first = next(iter(endings))
    if first in SLIDES:
        return 'to read them, pip install "twinblock[slides]"'
    return 'to read them, pip install "twinblock[heif]"' if first in HEIF else UNREAD.get(first) or CONVERT
