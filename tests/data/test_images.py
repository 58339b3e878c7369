"""Images in memory: batches of them, and what a terminal shows."""

import numpy as np
from pictures import encoded, plain

from twinblock.data import Images, Names
from twinblock.data.packing import packed


def test_a_batch_is_a_copy_of_these_rows_in_this_order():
    pixels = np.arange(5 * 2 * 2 * 3, dtype=np.uint8).reshape(5, 2, 2, 3)
    images = Images(pixels.copy())
    batch = images.batch([3, 0, 3])
    assert np.array_equal(batch.numpy(), pixels[[3, 0, 3]])
    batch.zero_()
    assert np.array_equal(images.pixels, pixels)
    assert images.batch([]).shape == (0, 2, 2, 3)


def test_a_batch_of_a_memory_map_can_be_written_to():
    images = packed(encoded([plain(7), plain(9)]))
    batch = images.batch(np.array([1]))
    batch += 1
    assert batch.unique().tolist() == [10]
    assert images.pixels[1, 0, 0, 0] == 9


def test_what_a_terminal_shows_of_images_and_names_is_short():
    images = packed(encoded([plain(1)] * 500, labels=[0, 1] * 250))
    assert repr(images) == "Images(some: 500 of 8 x 8, 2 classes)"
    assert repr(images.names) == "Names('000.png', '001.png', '002.png', ... 500)"
    assert repr(Names.of(["a"])) == "Names('a')"
    assert repr(Images(images.pixels)) == "Images(unnamed: 500 of 8 x 8, no labels)"
