"""Self-supervised pretraining of image encoders, end to end or block by block, that tells you whether it worked.

`pretrain` trains an encoder; `draw_views` shows what it will see, `estimate` what it will take. `evaluate`,
`diagnose`, `embed`, `search`, `duplicates` and `exemplars` say what came of it; `compare` sets runs side by side,
`rank` orders them without labels, and `report` writes all of it to one file. `load_encoder` gives the encoder as a
module, `export` as a folder for other libraries; `finetune` trains it further with labels. `recipes` lists the methods,
`show` and `compose` what a run is made of, `reproduce` carries out a published comparison, `cache` lists what lies
packed on the disk.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from twinblock.core.version import __version__

if TYPE_CHECKING:
    from twinblock.assembly.draw import draw_views
    from twinblock.config.recipes import compose, recipes, show
    from twinblock.core.errors import InputError
    from twinblock.data import Images
    from twinblock.data.portable import pack
    from twinblock.data.stores import cache
    from twinblock.diagnosis.diagnose import diagnose
    from twinblock.evaluation.compare import compare
    from twinblock.evaluation.embedding import Embeddings, embed
    from twinblock.evaluation.evaluate import evaluate
    from twinblock.evaluation.exemplars import exemplars
    from twinblock.evaluation.finetune import finetune
    from twinblock.evaluation.rank import rank
    from twinblock.evaluation.search import duplicates, search
    from twinblock.exports.export import export
    from twinblock.reports.report import report
    from twinblock.runs.run import Run, load_encoder
    from twinblock.studies import reproduce
    from twinblock.training.estimate import estimate
    from twinblock.training.pretrain import pretrain


_HOMES = {
    "Embeddings": "evaluation.embedding",
    "Images": "data",
    "InputError": "core.errors",
    "Run": "runs.run",
    "cache": "data.stores",
    "compare": "evaluation.compare",
    "compose": "config.recipes",
    "diagnose": "diagnosis.diagnose",
    "draw_views": "assembly.draw",
    "duplicates": "evaluation.search",
    "embed": "evaluation.embedding",
    "estimate": "training.estimate",
    "evaluate": "evaluation.evaluate",
    "exemplars": "evaluation.exemplars",
    "export": "exports.export",
    "finetune": "evaluation.finetune",
    "load_encoder": "runs.run",
    "pack": "data.portable",
    "pretrain": "training.pretrain",
    "rank": "evaluation.rank",
    "recipes": "config.recipes",
    "report": "reports.report",
    "reproduce": "studies",
    "search": "evaluation.search",
    "show": "config.recipes",
}
__all__ = [
    "Embeddings",
    "Images",
    "InputError",
    "Run",
    "__version__",
    "cache",
    "compare",
    "compose",
    "diagnose",
    "draw_views",
    "duplicates",
    "embed",
    "estimate",
    "evaluate",
    "exemplars",
    "export",
    "finetune",
    "load_encoder",
    "pack",
    "pretrain",
    "rank",
    "recipes",
    "report",
    "reproduce",
    "search",
    "show",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `twinblock --help` need not wait for torch."""
    if name in _HOMES:
        return getattr(import_module(f"twinblock.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'twinblock' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
