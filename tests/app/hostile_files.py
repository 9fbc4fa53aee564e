"""Files that no browser's user would send: a hundred of them, for the upload of profiles and for the drawing."""

import io
import itertools
import json
import struct
import zipfile
import zlib

import numpy as np
import safetensors.numpy
from PIL import Image


# What nobody is told of any of them.
UNWANTED = ("Traceback", "Something went wrong", "/tmp", "recursion", "NoneType", "Error")


def profiles(good):
    """(name, bytes) of files for "Open a profile".

    Args:
        good (`bytes`): A sound one, which most are made from.
    """
    members = {
        name: zipfile.ZipFile(io.BytesIO(good)).read(name) for name in zipfile.ZipFile(io.BytesIO(good)).namelist()
    }
    index = json.loads(members["profile.json"])

    def pack(changed, compression=zipfile.ZIP_DEFLATED):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", compression) as archive:
            for name, data in {**members, **changed}.items():
                if data is not None:
                    archive.writestr(name, data)
        return buffer.getvalue()

    yield "nothing", b""
    yield "text", b"profile" * 99
    for share in (0.1, 0.5, 0.9, 0.99):
        yield f"cut at {share}", good[: int(len(good) * share)]
    for place in range(0, len(good), max(len(good) // 12, 1)):
        yield f"a flipped byte at {place}", good[:place] + bytes([good[place] ^ 255]) + good[place + 1 :]
    yield "a bomb", pack({"bomb.json": b"0" * (300 * 2**20)})
    yield "a bomb of arrays", pack({"bomb.safetensors": bytes(300 * 2**20)})
    yield "an archive in an archive", pack({"inner.json": good, "inner.zip": good})
    yield "many files", pack({f"x/{i}.json": b"{}" for i in range(20_000)}, zipfile.ZIP_STORED)
    yield "deep folders", pack({"a/" * 1500 + "x.json": b"{}"})
    for name in (
        "../out.json",
        "/etc/cron.d/x.json",
        "..\\out.json",
        "C:\\x.json",
        "a\x01.json",
        "\ud83d\ude00.json".encode("utf-16", "surrogatepass").decode("utf-16") + ".json",
        "con.json",
        "x" * 300 + ".json",
        ".json",
        "run.py",
    ):
        yield f"a file {name[:12]!r}", pack({name: b"{}"})
    link = zipfile.ZipInfo("link.json")
    link.external_attr = 0o120777 << 16
    buffer = io.BytesIO(good)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    yield "a link", buffer.getvalue()
    lying = bytearray(pack({"samples.safetensors": bytes(2**20)}))
    at = lying.rfind(b"PK\x01\x02")
    lying[at + 24 : at + 28] = struct.pack("<I", 5)
    yield "a lie about a size", bytes(lying)
    for text in (
        "",
        "[]",
        "null",
        "1e999",
        "NaN",
        "{",
        "[" * 10_000,
        '"\\ud800"',
        "{}" * 9,
        '{"arrays": {}}',
        "9" * 5000,
        '{"arrays": ' + "[" * 900 + "]" * 900 + "}",
    ):
        yield f"an index {text[:12]}", pack({"profile.json": text.encode()})
    for key, value in itertools.product(list(index), (None, -1, [], "x" * 10**5, {"a": {"b": [1e308, -0.0]}})):
        yield f"{key} = {str(value)[:8]}", pack({"profile.json": json.dumps({**index, key: value}).encode()})
    yield "an index of many lists", pack({"profile.json": b"[" + b"[]," * 2**24 + b"[]]"})
    name, entry = next(iter(index["arrays"].items()))
    words = {"dims": entry["dims"][:1], "dtype": "str", "attrs": {}, "values": ["x" * 10**5] + ["x"] * 10**4}
    for kind, change in (
        ("a long text among short ones", {"coords": {**entry["coords"], "words": words}}),
        ("a file many times", {"files": entry["files"] * 10_000}),
    ):
        changed = {**index, "arrays": {**index["arrays"], name: {**entry, **change}}}
        yield kind, pack({"profile.json": json.dumps(changed).encode()})
    for shape in (
        (1, 1, 3, 100_000, 1),
        (1, 1, 3, 1, 100_000),
        (0, 1, 3, 8, 8),
        (1, 1, 3, 8, 0),
        (3000, 1, 1, 2, 2),
        (1,),
    ):
        yield f"samples of {shape}", pack({"samples.safetensors": _samples(np.zeros(shape, np.float32))})
    sizes = (1, 1, 3, 8, 8)
    for value in (np.nan, np.inf, -np.inf, -0.0, 3e38):
        yield f"samples of {value}", pack({"samples.safetensors": _samples(np.full(sizes, value, np.float32))})
    for dtype in (np.bool_, np.int8, np.float64, np.uint64):
        yield f"samples in {dtype.__name__}", pack({"samples.safetensors": _samples(np.ones(sizes, dtype))})
    header = json.dumps({"samples": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    yield "a header of terabytes", pack({"samples.safetensors": struct.pack("<Q", len(header)) + header})
    yield "a header without end", pack({"samples.safetensors": struct.pack("<Q", 2**60)})


def _samples(array):
    return safetensors.numpy.save({"samples": array})


def drawings():
    """(name, bytes) of files as layers of the drawing."""
    for size in ((9000, 9000), (20_000, 1), (1, 20_000), (1025, 1024)):
        yield f"{size[0]} × {size[1]}", _png(*size)
    for size in ((2**31 - 1, 2**31 - 1), (0, 0), (2**31, 1)):
        yield f"a header of {size[0]} × {size[1]}", _chunks((b"IHDR", struct.pack(">IIBBBBB", *size, 8, 6, 0, 0, 0)))
    bomb = zlib.compress(bytes(64 * 2**20))
    good = struct.pack(">IIBBBBB", 8, 8, 8, 6, 0, 0, 0)
    yield (
        "a bomb in a text",
        _chunks((b"IHDR", good), (b"zTXt", b"k\0\0" + bomb), (b"IDAT", zlib.compress(bytes(8 * 33)))),
    )
    yield (
        "a bomb in a profile",
        _chunks((b"IHDR", good), (b"iCCP", b"k\0\0" + bomb), (b"IDAT", zlib.compress(bytes(264)))),
    )
    yield "too many pixels", _chunks((b"IHDR", good), (b"IDAT", bomb))
    yield "no pixels", _chunks((b"IHDR", good))
    for mode, kind in (
        ("RGB", "GIF"),
        ("RGB", "JPEG"),
        ("RGB", "BMP"),
        ("RGB", "TIFF"),
        ("I;16", "PNG"),
        ("P", "PNG"),
        ("1", "PNG"),
    ):
        buffer = io.BytesIO()
        Image.new(mode, (8, 8)).save(buffer, kind)
        yield f"{kind} {mode}", buffer.getvalue()
    buffer = io.BytesIO()
    frames = [Image.new("RGBA", (64, 64), (i, 0, 0, 255)) for i in range(50)]
    frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:])
    yield "an animation", buffer.getvalue()
    yield "svg", b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    yield "eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run"
    yield "nothing", b""


def _png(width, height):
    rows = zlib.compress(bytes((1 + width) * height), 9)
    return _chunks((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), (b"IDAT", rows))


def _chunks(*chunks):
    data = b"\x89PNG\r\n\x1a\n"
    for kind, body in (*chunks, (b"IEND", b"")):
        data += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return data
