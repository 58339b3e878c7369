"""Members of archives that cannot be read are left out and listed; the others are used."""

import io
import zipfile

from pictures import plain

from twinblock.data import load


def test_a_member_of_an_unknown_compression_is_left_out_and_listed(tmp_path, monkeypatch):
    """Windows packs files of more than 2 GB with Deflate64, method 9, which zipfile does not know."""
    monkeypatch.setenv("TWINBLOCK_CACHE", str(tmp_path / "cache"))
    picture = plain(90)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for i in range(30):
            archive.writestr(f"{i:02}.png", picture)
    content = bytearray(file.getvalue())
    first, entry = content.index(b"PK\x03\x04"), content.index(b"PK\x01\x02")
    content[first + 8] = content[entry + 10] = 9  # the method, in the header of the member and in the directory
    (tmp_path / "photos.zip").write_bytes(content)
    images = load(str(tmp_path / "photos.zip"))
    assert len(images) == 29
    ((name, why),) = images.skipped
    assert name == "00.png" and "compression" in why
