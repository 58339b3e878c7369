"""Self-supervised pretraining of image encoders, end to end or block by block, that tells you whether it worked."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twinblock.config.recipes import compose
    from twinblock.core.errors import InputError
    from twinblock.diagnosis.diagnose import diagnose
    from twinblock.evaluation.embedding import Embeddings, embed
    from twinblock.evaluation.evaluate import evaluate
    from twinblock.runs.run import Run, load_encoder
    from twinblock.training.pretrain import pretrain

__version__ = "0.1.0"
__all__ = ["Embeddings", "InputError", "Run", "compose", "diagnose", "embed", "evaluate", "load_encoder", "pretrain"]

_HOMES = {
    "Embeddings": "evaluation.embedding",
    "InputError": "core.errors",
    "Run": "runs.run",
    "compose": "config.recipes",
    "diagnose": "diagnosis.diagnose",
    "embed": "evaluation.embedding",
    "evaluate": "evaluation.evaluate",
    "load_encoder": "runs.run",
    "pretrain": "training.pretrain",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `twinblock --help` need not wait for torch."""
    if name in _HOMES:
        return getattr(import_module(f"twinblock.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'twinblock' has no attribute {name!r}")
