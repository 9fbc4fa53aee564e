"""What visitors send is bounded before memory or disk is taken for it."""

import datetime
import io
import json
import os
import subprocess
import sys
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.numpy
import xarray as xr
from PIL import Image

from diffusers_xai import DiffusionProfile
from diffusers_xai.app import opened
from diffusers_xai.app.drawing import painted
from diffusers_xai.app.session import Result, Session, enlarged
from diffusers_xai.app.settings import Limits, SettingsError
from diffusers_xai.app.visitors import Visitors
from diffusers_xai.app.workspace import trim, workspace
from diffusers_xai.profile.archive import write_archive


LIMITS = Limits()


def png(path, size, mode="RGBA", color=(255, 0, 0, 255)):
    Image.new(mode, size, color).save(path)
    return {"path": str(path)}


def test_a_drawing_is_where_any_layer_has_paint(tmp_path):
    first, second = Image.new("RGBA", (20, 10)), Image.new("RGBA", (20, 10))
    first.putpixel((3, 2), (255, 0, 0, 255))
    second.putpixel((19, 9), (255, 0, 0, 9))
    layers = []
    for i, image in enumerate((first, second)):
        image.save(tmp_path / f"{i}.png")
        layers.append({"path": str(tmp_path / f"{i}.png")})
    expected = np.zeros((10, 20), bool)
    expected[2, 3] = expected[9, 19] = True
    assert np.array_equal(painted({"layers": layers}, LIMITS), expected)
    Image.new("RGBA", (20, 10)).save(tmp_path / "empty.png")
    for nothing in (None, {}, {"layers": []}, {"layers": [{"path": str(tmp_path / "empty.png")}]}):
        assert painted(nothing, LIMITS) is None


def test_a_large_drawing_is_refused_by_its_header(tmp_path, monkeypatch):
    layer = png(tmp_path / "large.png", (1025, 4))
    monkeypatch.setattr(Image.Image, "convert", lambda *args: pytest.fail("it was decoded"))
    with pytest.raises(SettingsError, match="1024 × 1024 pixels, got 1025 × 4"):
        painted({"layers": [layer]}, LIMITS)


def test_other_drawings_than_an_editor_makes_are_refused(tmp_path):
    one, other = png(tmp_path / "a.png", (4, 4)), png(tmp_path / "b.png", (8, 4))
    with pytest.raises(SettingsError, match="of one size"):
        painted({"layers": [one, other]}, LIMITS)
    with pytest.raises(SettingsError, match="at most 4"):
        painted({"layers": [one] * 5}, LIMITS)
    (tmp_path / "text.png").write_text("no picture")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.gif")
    for bad in ({"path": str(tmp_path / "text.png")}, {"path": str(tmp_path / "a.gif")}, {}, "x"):
        with pytest.raises(SettingsError, match="cannot be read"):
            painted({"layers": [bad]}, LIMITS)


@pytest.mark.parametrize(("shape", "expected"), [((3, 1, 900), (1, 320, 3)), ((3, 900, 1), (320, 1, 3))])
def test_an_enlarged_image_is_bounded_in_both_sides(shape, expected):
    assert enlarged(np.zeros(shape)).shape == expected


DIMS = ("step", "sample", "channel", "height", "width")


def profile_of(shape, name="samples", dims=DIMS, **others):
    steps = {"step": np.arange(shape[0]), "timestep": ("step", np.arange(float(shape[0]))[::-1])}
    coords = steps if dims[0] == "step" else {}
    arrays = {name: xr.DataArray(np.zeros(shape, np.float32), dims=dims, coords=coords)}
    return DiffusionProfile({**arrays, **others}, {})


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 1, 3, 100_000, 1), "1 to 1024 along height of samples, got 100000"),
        ((1, 1, 3, 1, 100_000), "along width"),
        ((1, 1, 3, 100, 1), "differ at most 8 times, got 100 × 1"),
        ((2000, 1, 3, 8, 8), "along step"),
        ((1, 999, 3, 8, 8), "along sample"),
        ((1, 1, 9999, 8, 8), "along channel"),
    ],
)
def test_an_extreme_profile_is_refused_before_it_is_drawn(tmp_path, shape, message):
    file = write_archive(profile_of(shape), tmp_path / "profile.zip")
    with pytest.raises(SettingsError, match=message):
        opened.open_profile(str(file), tmp_path / "opened", LIMITS)
    assert not (tmp_path / "opened").exists()


def test_a_profile_without_samples_or_with_many_arrays_is_refused():
    with pytest.raises(SettingsError, match="no samples"):
        opened.check_shapes(profile_of((1, 1, 3, 8, 8), "x0"), LIMITS)
    many = {f"activations/layer{i}": xr.DataArray(np.zeros((1, 1, 1, 2, 2), np.float32), dims=DIMS,
            coords={"step": [0], "timestep": ("step", [0.0])}) for i in range(129)}  # fmt: skip
    with pytest.raises(SettingsError, match="at most 128 arrays"):
        opened.check_shapes(profile_of((1, 1, 3, 8, 8), **many), LIMITS)


def test_a_damaged_file_is_told_without_places_of_the_server(tmp_path):
    good = write_archive(profile_of((1, 1, 3, 8, 8)), tmp_path / "good.zip")
    with zipfile.ZipFile(good) as archive:
        index = archive.read("profile.json")
    contents = {
        "no zip": b"x",
        "only the index": {"profile.json": index},
        "no index": {"samples.safetensors": safetensors.numpy.save({"samples": np.zeros(3)})},
        "an index of another kind": {"profile.json": b"[]"},
        "an index of numbers": {"profile.json": json.dumps({**json.loads(index), "arrays": 3}).encode()},
        "an index without end": {"profile.json": b"[" * 100_000},
    }
    for name, members in contents.items():
        file = tmp_path / f"{name}.zip"
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for member, data in members.items() if isinstance(members, dict) else ():
                archive.writestr(member, data)
        file.write_bytes(members if isinstance(members, bytes) else buffer.getvalue())
        with pytest.raises(SettingsError, match="cannot be opened") as refused:
            opened.open_profile(str(file), tmp_path / "opened", LIMITS)
        assert str(tmp_path) not in str(refused.value), name
        assert not (tmp_path / "opened").exists(), name


def test_a_session_keeps_one_opened_file(tmp_path):
    visitor = Session(tmp_path)
    assert list(tmp_path.iterdir()) == []  # who only looks takes no disk
    for _ in range(10):
        visitor.new_folder().mkdir()
    assert len(list(visitor.folder.iterdir())) == 1
    visitor.close()
    assert list(tmp_path.iterdir()) == []


def test_all_files_together_are_bounded_and_the_oldest_go_first(tmp_path):
    for age, name in enumerate(("new", "older", "oldest")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(b"x" * 100)
        os.utime(tmp_path / name / "file", (1000 - age, 1000 - age))
    trim(tmp_path, 250)
    assert sorted(file.parent.name for file in tmp_path.rglob("file")) == ["new", "older"]
    trim(tmp_path, 0)
    assert list(tmp_path.rglob("file")) == []


LEAVE = """
import os, sys
from diffusers_xai.app.workspace import workspace
with workspace() as folder:
    (folder / "large").write_text("x")
    print(folder, flush=True)
    if sys.argv[1] == "killed":
        os._exit(9)
    sys.stdin.read()
"""


def test_a_new_start_clears_what_a_killed_server_left_and_no_other_s(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    command = [sys.executable, "-c", LEAVE]
    left = subprocess.run([*command, "killed"], capture_output=True, text=True, check=False).stdout.strip()
    assert os.path.exists(os.path.join(left, "large"))
    living = subprocess.Popen([*command, "lives"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        other = living.stdout.readline().strip()
        with workspace() as folder:
            assert os.environ["GRADIO_TEMP_DIR"] == str(folder / "gradio")
            assert not os.path.exists(left)
            assert os.path.exists(os.path.join(other, "large"))
        assert not folder.exists()
    finally:
        living.communicate(timeout=60)
    assert not os.path.exists(other)


@pytest.fixture
def visitors(monkeypatch):
    """Gradio's sessions without a page: `visit` opens one, with a run of so many bytes."""
    holder = Visitors(max_bytes=10_000)
    holder.capacity = 5

    def visit(name, nbytes=0):
        if name not in holder.session_data:
            holder.session_data[name] = SimpleNamespace(state_data={1: Session()}, is_closed=False)
        holder.time_last_used[name] = datetime.datetime.now()
        if nbytes:
            profile = {"samples": np.zeros(nbytes, np.uint8)}
            holder.session_data[name].state_data[1].result = Result(profile, None, {}, "")
        holder.update(name)
        return holder.session_data[name].state_data[1]

    return holder, visit


def test_seventy_page_loads_do_not_evict_a_run(visitors):
    holder, visit = visitors
    mine = visit("mine", 100)
    for i in range(70):
        visit(f"fresh {i}")
    assert len(holder.session_data) == 5
    assert holder.session_data["mine"].state_data[1] is mine
    assert mine.result is not None


def test_a_session_whose_run_is_on_its_way_is_kept_too(visitors):
    holder, visit = visitors
    with visit("mine").running(1):
        for i in range(9):
            visit(f"fresh {i}")
        assert "mine" in holder.session_data


def test_the_runs_of_all_are_bounded_and_who_was_idle_longest_loses_his(visitors):
    holder, visit = visitors
    sessions = {name: visit(name, 4000) for name in ("a", "b")}
    visit("a")
    sessions["c"] = visit("c", 4000)
    assert set(holder.session_data) == {"a", "c"}
    assert sessions["b"].result is None
    assert sessions["b"].is_cancelled(0)


def test_who_left_is_forgotten_after_an_hour(visitors):
    holder, visit = visitors
    gone, here = visit("gone", 100), visit("here", 100)
    holder.session_data["gone"].is_closed = True
    for name in ("gone", "here"):
        holder.time_last_used[name] -= datetime.timedelta(minutes=61)
    holder.delete_all_expired_state()
    assert set(holder.session_data) == {"here"}
    assert gone.result is None
    assert here.result is not None
