"""Where networks run when nothing else says so."""

import torch


def best_device() -> torch.device:
    """The first GPU of this machine, else its processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
