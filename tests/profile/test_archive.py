"""Profiles as zip files, good and bad ones."""

import json
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from diffusers_xai.profile.archive import read_archive, write_archive
from tests.plots.profiles import make_profile


def test_a_profile_comes_back_from_its_zip_file(tmp_path):
    profile = make_profile()
    file = write_archive(profile, tmp_path / "profile.zip")
    back = read_archive(file, tmp_path / "back")
    assert set(back) == set(profile)
    assert all(np.array_equal(back[name].values, profile[name].values) for name in profile)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def bad_zip(path, name, data=b"x"):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("weights.pkl", "safetensors and JSON"),
        ("../profile.json", "inside the profile"),
        ("/tmp/profile.json", "inside the profile"),
        ("a\\profile.json", "inside the profile"),
        ("profile.json", "damaged"),
    ],
)
def test_bad_members_are_refused_and_nothing_is_left(tmp_path, name, message):
    file = bad_zip(tmp_path / "bad.zip", name)
    with pytest.raises(ValueError, match=message):
        read_archive(file, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.zip"]


def test_a_bomb_is_refused(tmp_path):
    file = bad_zip(tmp_path / "bomb.zip", "profile.json", b" " * 5_000_000)
    assert file.stat().st_size < 10_000
    with pytest.raises(ValueError, match="at most 1.05 MB"):
        read_archive(file, tmp_path / "out", max_bytes=2**20)
    data = file.read_bytes().replace((5_000_000).to_bytes(4, "little"), (100).to_bytes(4, "little"))
    file.write_bytes(data)  # a lie about the size
    with pytest.raises(ValueError, match="zip file|more when"):
        read_archive(file, tmp_path / "out", max_bytes=2**20)
    assert not (tmp_path / "out").exists()


def test_links_and_other_files_are_refused(tmp_path):
    member = zipfile.ZipInfo("profile.json")
    member.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        archive.writestr(member, "/etc/passwd")
    with pytest.raises(ValueError, match="got the link"):
        read_archive(tmp_path / "link.zip", tmp_path / "out")
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(ValueError, match="zip file"):
        read_archive(tmp_path / "text.zip", tmp_path / "out")


def changed(good, **members):
    """A sound zip file with some of its members replaced, and others added."""
    file = good.with_name("changed.zip")
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in source.namelist():
            archive.writestr(name, members.pop(name) if name in members else source.read(name))
        for name, data in members.items():
            archive.writestr(name, data)
    return file


def test_what_would_take_much_memory_is_refused_before_it_does(tmp_path):
    """Each of these takes 1 to 5 MB as a file, or far less; what is made of it is measured."""
    good = write_archive(make_profile(), tmp_path / "good.zip")
    index = json.loads(zipfile.ZipFile(good).read("profile.json"))
    name, entry = next((name, entry) for name, entry in index["arrays"].items() if len(entry["files"]) == 1)

    def with_entry(**changes):
        return json.dumps({**index, "arrays": {**index["arrays"], name: {**entry, **changes}}})

    values = ["x" * 10**5] + ["x"] * 10**4
    text = {"dims": [entry["dims"][0]], "dtype": "str", "attrs": {}, "values": values}
    header = json.dumps({"x" * 10**6: {"dtype": "F32", "shape": [], "data_offsets": [0, 0]}}).encode()
    cases = {
        "list of files takes": {f"x/{i}.json": b"{}" for i in range(20_000)},
        "MB of JSON": {"more.json": b"[" + b"[]," * 2**21 + b"[]]"},
        "a coordinate of at most": {"profile.json": with_entry(coords={**entry["coords"], "words": text})},
        "each once": {"profile.json": with_entry(files=entry["files"] * 1000)},
        "header of one tensor": {entry["files"][0]: struct.pack("<Q", len(header)) + header},
    }
    for message, members in cases.items():
        file = changed(good, **members)
        tracemalloc.start()
        with pytest.raises(ValueError, match=message):
            read_archive(file, tmp_path / "out")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 20 * 2**20, (message, peak)
        assert not (tmp_path / "out").exists()


# Ones begin a block of no kind that deflate knows; LZMA has nine bytes of its properties first.
@pytest.mark.parametrize(("compression", "kept"), [(zipfile.ZIP_DEFLATED, 0), (zipfile.ZIP_LZMA, 9)])
def test_a_damaged_compressed_stream_is_told_in_words(tmp_path, compression, kept):
    with zipfile.ZipFile(tmp_path / "damaged.zip", "w", compression) as archive:
        archive.writestr("profile.json", "abcdefgh" * 400)
        start = archive.getinfo("profile.json").header_offset + 30 + len("profile.json")
        size = archive.getinfo("profile.json").compress_size
    content = bytearray((tmp_path / "damaged.zip").read_bytes())
    content[start + kept : start + size] = b"\xff" * (size - kept)
    (tmp_path / "damaged.zip").write_bytes(content)
    with pytest.raises(ValueError, match="Expected a zip file of a profile: Damaged data of file 'profile.json'"):
        read_archive(tmp_path / "damaged.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists()
