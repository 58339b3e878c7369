"""Published comparisons, each carried out by one command: `twinblock reproduce NAME [data=...] [seeds=N]`.

A study is a module with `reproduce(options)`; its name is the module's, with hyphens.
"""

from collections.abc import Sequence
from importlib import import_module
from importlib.resources import files
from pathlib import Path

from twinblock.core.errors import InputError, nearest
from twinblock.core.files import expanded


def studies() -> list[str]:
    """The names of the studies."""
    names = (Path(str(file)).stem for file in files("twinblock.studies").iterdir() if file.name.endswith(".py"))
    return sorted(name.replace("_", "-") for name in names if name not in ("__init__", "study"))


def reproduce(name: str, overrides: Sequence[str] = ()) -> None:
    """Carry out the study `name`: blockwise, byol-norms, local-rules or longtail. It writes a table and figures.

    `overrides`: `seeds=N`, by default 3; `out=DIR`, by default runs/NAME; any other `a.b=c` changes every arm.
    """
    from twinblock.studies.study import Options

    if name not in studies():
        near = nearest(name, studies())
        hint = f"; did you mean {near[0]}?" if near else "."
        raise InputError(f"no study {name!r}{hint} Known: {', '.join(studies())}")
    settings = {key: value for key, _, value in (text.partition("=") for text in overrides) if key in ("seeds", "out")}
    if not settings.get("seeds", "3").isdigit():
        raise InputError(f"seeds={settings['seeds']}: give a whole number, such as seeds=3")
    out = expanded(settings.get("out", f"runs/{name}"))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"out={out}: cannot write there ({error.strerror}); choose another folder") from None
    rest = tuple(text for text in overrides if text.partition("=")[0] not in settings)
    import_module(f"twinblock.studies.{name.replace('-', '_')}").reproduce(
        Options(out, int(settings.get("seeds", 3)), rest)
    )
