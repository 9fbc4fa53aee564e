import numpy as np
import pytest
from PIL import Image, ImageOps

from diffusers_xai.measures.pictures import open_picture


def stored(path, orientation, **kwargs):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, exif=exif, **kwargs)
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp"])
def test_exif_turns_a_picture_as_pillow_s_own_tool_does(tmp_path, name, orientation):
    path = stored(tmp_path / name, orientation, **({"lossless": True} if name.endswith("webp") else {}))
    expected = ImageOps.exif_transpose(Image.open(path))
    assert np.array_equal(np.asarray(open_picture(path)), np.asarray(expected))
    assert open_picture(path).size == ((6, 4) if orientation < 5 else (4, 6))


def test_damaged_exif_data_do_not_spoil_the_pixels(tmp_path):
    path = stored(tmp_path / "a.jpg", 6)
    data = path.read_bytes()
    start = data.index(b"Exif\0\0") + 6
    path.write_bytes(data[:start] + b"XX" + data[start + 2 :])  # neither byte order
    assert open_picture(path).size == (6, 4)


@pytest.mark.parametrize(
    "data",
    [b"", b"no picture", b"P6\n20 2", b"P6\n20 20\n255\n123", b"GIF89a", b"BM" + bytes(20), b"II*\0" + bytes(3)],
)
def test_whatever_pillow_raises_is_an_os_error(tmp_path, data):
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(OSError, match="^not a readable picture: ."):
        open_picture(tmp_path / "a.png")


def test_bombs_folders_and_missing_files(tmp_path, monkeypatch):
    stored(tmp_path / "a.png", 1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(OSError, match="not a readable picture: Image size .24 pixels. exceeds limit"):
        open_picture(tmp_path / "a.png")
    with pytest.raises(OSError, match="not a readable picture: .*directory"):
        open_picture(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_picture(tmp_path / "b.png")
