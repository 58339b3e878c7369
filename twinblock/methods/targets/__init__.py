"""Target networks: which tensors the target embeddings are made with. The online network does not know.

A file here is a kind: its name, and the annotated arguments of its class are its fields.
"""

import sys

from twinblock.methods.parts import discover
from twinblock.methods.targets.target import Target

KINDS: dict[str, type[Target]] = discover(sys.modules[__name__], Target)
