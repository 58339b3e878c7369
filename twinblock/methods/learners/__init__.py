"""Learners that train their blocks in another way than by comparing views, one file a method.

A file here is a kind: its name, and the annotated arguments of its class are its fields.
"""

import sys

from twinblock.methods.learners.alone import Alone
from twinblock.methods.parts import discover

KINDS: dict[str, type[Alone]] = discover(sys.modules[__name__], Alone)
