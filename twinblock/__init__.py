"""Self-supervised pretraining of image encoders, end to end or block by block, that tells you whether it worked."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twinblock.api import load_encoder, pretrain
    from twinblock.diagnosis.run import diagnose
    from twinblock.embedding import Embeddings, embed
    from twinblock.errors import InputError
    from twinblock.evaluation.run import evaluate
    from twinblock.recipes import compose
    from twinblock.run import Run

__version__ = "0.1.0"
__all__ = ["Embeddings", "InputError", "Run", "compose", "diagnose", "embed", "evaluate", "load_encoder", "pretrain"]

_HOMES = {
    "Embeddings": "embedding",
    "InputError": "errors",
    "Run": "run",
    "compose": "recipes",
    "diagnose": "diagnosis.run",
    "embed": "embedding",
    "evaluate": "evaluation.run",
    "load_encoder": "api",
    "pretrain": "api",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `twinblock --help` need not wait for torch."""
    if name in _HOMES:
        return getattr(import_module(f"twinblock.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'twinblock' has no attribute {name!r}")
