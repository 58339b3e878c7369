"""`python -m twinblock`, for torchrun."""

from twinblock.cli import main

main()
