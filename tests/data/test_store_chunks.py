"""How many images are decoded together: about four million values, and from 16 to 1 024 images."""

import pytest
from pictures import plain

from twinblock.data import packing
from twinblock.data.decode import quiet
from twinblock.data.forms import Form


@pytest.mark.parametrize(("side", "count"), [(8, 1024), (64, 341), (400, 16)])
def test_chunks_of_large_images_are_of_fewer(side, count):
    """2^22 / (3 x 64 x 64) is 341; eight images of 400 pixels would be too few to share the work."""
    file = plain(1)
    with quiet():
        chunks = packing._decoded(((str(i), file, -1) for i in range(1100)), (side, side, 3), Form())
        assert len(next(chunks)[0]) == count
        chunks.close()
