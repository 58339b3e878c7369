"""Objectives: the mathematics of each method on the global batch of embeddings, one file a formula.

Each is a module called with the online embedding `z` and the target embedding `t`, usable in anyone's loop.
It normalises or standardises its own input, holds no parameters, and its forward changes no state: a buffer
moves only in `after_step`.
"""

from twinblock.methods.objectives.barlow_twins import BarlowTwins
from twinblock.methods.objectives.info_nce import InfoNCE
from twinblock.methods.objectives.nt_xent import NTXent
from twinblock.methods.objectives.regression import Regression
from twinblock.methods.objectives.supervised import Supervised
from twinblock.methods.objectives.vicreg import VICReg

__all__ = ["BarlowTwins", "InfoNCE", "NTXent", "Regression", "Supervised", "VICReg"]
