import json
import stat

import numpy as np
import pytest
import xarray as xr
from safetensors.numpy import load_file, save_file

from diffusers_xai.profile import DTYPES, DiffusionProfile
from tests.profile.profiles import ALIAS, LAYER, array, assert_bit_identical, make_profile


def saved(tmp_path, profile=None):
    (make_profile() if profile is None else profile).save_pretrained(tmp_path / "fox")
    return tmp_path / "fox"


def edit_index(path, edit):
    index = json.loads((path / "profile.json").read_text())
    edit(index)
    (path / "profile.json").write_text(json.dumps(index))


def test_round_trip_with_every_dtype(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {}
    for dtype in DTYPES:
        size = np.dtype(dtype).itemsize
        # Random bits: NaNs with payloads, infinities, subnormal numbers and negative zeros are among them.
        bits = rng.integers(0, 2 if dtype == "bool" else 256, (50, 3, 7 * size), dtype=np.uint8)
        arrays[f"activations/{dtype}"] = xr.DataArray(
            bits.view(dtype),
            dims=("sample", "channel", "token"),
            coords={"value": ("token", rng.integers(0, 2, 7).astype(dtype))},
        )
    profile = DiffusionProfile(arrays)
    assert_bit_identical(DiffusionProfile.from_pretrained(saved(tmp_path, profile)), profile)


def test_round_trip_with_all_kinds_of_coordinates_and_attributes(tmp_path):
    samples = array(3, 12, 10, branches=("uncond", "cond"), dtype="float16").assign_coords(
        sigma=("step", np.float32([np.inf, 0.1, np.nan])),
        height=np.linspace(0, 1, 12, dtype=np.float32),
        channel=["red", "grün", ""],
        where=(("height", "width"), np.arange(120).reshape(12, 10) / 7),
        guidance=7.5,
        prompt='a "red" fox\n',
    )
    samples["sigma"].attrs["unit"] = "none"
    samples.attrs = {"low": -np.inf, "of": ("a", 1, None, True, 0.1), "nested": {"nan": [float("inf")]}, "text": "ε_θ"}
    profile = DiffusionProfile({"samples": samples})
    loaded = DiffusionProfile.from_pretrained(saved(tmp_path, profile))
    assert_bit_identical(loaded, profile)
    assert loaded["samples"].indexes["channel"].equals(profile["samples"].indexes["channel"])
    assert loaded.sel("samples", step=5).sel(branch="cond", channel="grün").dims == ("sample", "height", "width")


def test_round_trip_of_provenance(tmp_path):
    provenance = {
        "layer_aliases": {ALIAS: LAYER}, "seeds": [3, None], "scheduler": {"config": {"clip": -np.inf}},
        "timesteps": [999.0, 0.1], "complete": True, "prompt": "Füchse", "empty": {}, "none": [],
    }  # fmt: skip
    profile = DiffusionProfile({}, provenance)
    loaded = DiffusionProfile.from_pretrained(saved(tmp_path, profile))
    assert loaded.provenance == profile.provenance == provenance
    assert list(loaded.provenance) == list(provenance)


def test_arrays_that_do_not_lie_in_c_order(tmp_path):
    values = np.random.default_rng(0).normal(size=(10, 12, 3, 4)).transpose(3, 2, 1, 0)[::-2]
    profile = DiffusionProfile({"final_sample": xr.DataArray(values, dims=("sample", "channel", "height", "width"))})
    loaded = DiffusionProfile.from_pretrained(saved(tmp_path, profile))
    np.testing.assert_array_equal(loaded["final_sample"], values)


def test_the_folder_holds_json_and_one_safetensors_file_per_array(tmp_path):
    profile = make_profile(**{"attention_weights/odd: näme%2F..x": array(2, 4, 4), "measures/SSIM": array(dims=()),
                              "measures/ssim": array(dims=(), seed=1)})  # fmt: skip
    path = saved(tmp_path, profile)
    files = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
    assert files[-1] == "samples.safetensors"
    assert f"activations/{LAYER}.safetensors" in files
    assert len({file.casefold() for file in files}) == len(files) == 7

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    index = json.loads((path / "profile.json").read_text(), parse_constant=refuse)
    assert index["format_version"] == 1
    assert index["provenance"] == profile.provenance
    assert list(index["arrays"]) == list(profile)
    for name, entry in index["arrays"].items():
        (file,) = entry["files"]
        tensors = load_file(path / file)
        assert list(tensors) == [name]
        np.testing.assert_array_equal(tensors[name], profile[name])
        assert entry["dims"] == list(profile[name].dims)
        assert entry["shape"] == list(profile[name].shape)
        assert entry["dtype"] == str(profile[name].dtype)
    assert_bit_identical(DiffusionProfile.from_pretrained(path), profile)


def test_every_file_is_as_readable_as_the_index(tmp_path):
    path = saved(tmp_path)
    (tmp_path / "plain.txt").touch()
    modes = {stat.S_IMODE(file.stat().st_mode) for file in path.rglob("*") if file.is_file()}
    assert modes == {stat.S_IMODE((tmp_path / "plain.txt").stat().st_mode)}


def test_only_the_array_that_is_asked_for_is_read(tmp_path):
    profile, path = make_profile(), saved(tmp_path)
    (path / "final_sample.safetensors").unlink()
    (path / "samples.safetensors").write_bytes(b"broken")
    loaded = DiffusionProfile.from_pretrained(path)
    assert list(loaded) == list(profile)
    assert repr(loaded) == repr(profile)
    np.testing.assert_array_equal(loaded[f"activations/{ALIAS}"], profile[f"activations/{LAYER}"])
    mask = np.ones((12, 10), bool)
    assert loaded.max_channel(LAYER, step=5, mask=mask) == profile.max_channel(LAYER, step=5, mask=mask)
    with pytest.raises(ValueError, match="a mask of the samples' size"):
        loaded.max_channel(LAYER, step=5, mask=mask.T)


def test_an_array_is_read_once_and_can_be_changed_without_touching_the_file(tmp_path):
    path = saved(tmp_path)
    before = (path / "samples.safetensors").read_bytes()
    loaded = DiffusionProfile.from_pretrained(path)
    assert loaded["samples"] is loaded["samples"]
    loaded["samples"][:] = 0
    assert (loaded["samples"] == 0).all()
    assert (path / "samples.safetensors").read_bytes() == before


def test_relative_paths_survive_a_change_of_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_profile().save_pretrained("deep/er/fox")
    loaded = DiffusionProfile.from_pretrained("deep/er/fox")
    monkeypatch.chdir("deep")
    assert_bit_identical(loaded, make_profile())


def test_shards_are_joined_along_the_first_dim(tmp_path):
    profile, path = make_profile(), saved(tmp_path)
    index = json.loads((path / "profile.json").read_text())
    for number, rows in enumerate((slice(0, 1), slice(1, 3))):
        save_file(
            {"samples": profile["samples"].values[rows].copy()}, path / f"s{number}.safetensors", {"id": index["id"]}
        )
    edit_index(path, lambda index: index["arrays"]["samples"].update(files=["s0.safetensors", "s1.safetensors"]))
    (path / "samples.safetensors").unlink()
    assert_bit_identical(DiffusionProfile.from_pretrained(path), profile)


def test_no_profile(tmp_path):
    with pytest.raises(FileNotFoundError, match="a folder with profile.json, got .*nowhere"):
        DiffusionProfile.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="Expected a folder with profile.json"):
        DiffusionProfile.from_pretrained(tmp_path)


@pytest.mark.parametrize("version", [0, 2, "1", None, [1]])
def test_other_format_versions(tmp_path, version):
    path = saved(tmp_path)
    edit_index(path, lambda index: index.update(format_version=version))
    with pytest.raises(ValueError, match="expected format_version 1, got .*another version of diffusers_xai"):
        DiffusionProfile.from_pretrained(path)


@pytest.mark.parametrize(
    "file",
    [
        "../samples.safetensors",
        "activations/../../samples.safetensors",
        "/etc/samples.safetensors",
        "//host/samples.safetensors",
        "C:/samples.safetensors",
        "..\\samples.safetensors",
        "samples.safetensors\0",
        "samples.bin",
        "..",
        "",
        7,
        None,
    ],
)
def test_files_outside_the_folder(tmp_path, file):
    path = saved(tmp_path)
    # A file that would load: it lies outside, where the index must not lead.
    (tmp_path / "samples.safetensors").write_bytes((path / "samples.safetensors").read_bytes())
    edit_index(path, lambda index: index["arrays"]["samples"].update(files=[file]))
    with pytest.raises(ValueError, match="profile.json is damaged: "):
        DiffusionProfile.from_pretrained(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format_version": 1}', "\x00", "[" * 100_000])
def test_broken_index(tmp_path, text):
    path = saved(tmp_path)
    (path / "profile.json").write_text(text)
    with pytest.raises(ValueError, match="profile.json is damaged|profile.json: expected the index of a profile"):
        DiffusionProfile.from_pretrained(path)


@pytest.mark.parametrize(
    "change",
    [
        {"dims": ["step", "sample", "channel", "width", "height"]},
        {"dims": ["step", "sample"]},
        {"dims": None},
        {"shape": [3, 2, 3, 12, 11, 4]},
        {"shape": [-1, 2, 3, 12, 10]},
        {"shape": [10**30, 2, 3, 12, 10]},
        {"shape": [4, 2, 3, 12, 10]},
        {"shape": "all"},
        {"dtype": "object"},
        {"dtype": "bfloat16"},
        {"dtype": ["f4"]},
        {"coords": {}},
        {"coords": []},
        {"coords": {"step": {"dims": ["step"], "dtype": "object", "values": [0, 5, 9], "attrs": {}}}},
        {"coords": {"step": {"dims": ["step"], "dtype": "int64", "values": [0, 5, "x"], "attrs": {}}}},
        {"coords": {"step": {"dims": ["step"], "dtype": "int64", "values": [0, 5, 10**40], "attrs": {}}}},
        {"coords": {"step": {"dims": ["step"]}}},
        {"attrs": 3},
        {"files": []},
        {"files": "samples.safetensors"},
        {"files": None},
    ],
)
def test_damaged_entries(tmp_path, change):
    path = saved(tmp_path)
    edit_index(path, lambda index: index["arrays"]["samples"].update(change))
    with pytest.raises(ValueError, match="profile.json is damaged: "):
        DiffusionProfile.from_pretrained(path)


@pytest.mark.parametrize("key", ["dims", "shape", "dtype", "coords", "attrs", "files"])
def test_entries_that_lack_something(tmp_path, key):
    path = saved(tmp_path)
    edit_index(path, lambda index: index["arrays"]["samples"].pop(key))
    with pytest.raises(ValueError, match=f"profile.json is damaged: it lacks '{key}'"):
        DiffusionProfile.from_pretrained(path)


def write_tensor(values, key="samples", own_id=True):
    def damage(path):
        profile_id = json.loads((path / "profile.json").read_text())["id"]
        save_file({key: values}, path / "samples.safetensors", {"id": profile_id if own_id else "another"})

    return damage


def cut(size):
    def damage(path):
        content = (path / "samples.safetensors").read_bytes()
        (path / "samples.safetensors").write_bytes(content[:size])

    return damage


GOOD = np.zeros((3, 2, 3, 12, 10), dtype="float32")


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda path: (path / "samples.safetensors").unlink(), FileNotFoundError, "samples: its file .* is missing"),
        (cut(-1), ValueError, "samples: its file .* is damaged"),
        (cut(40), ValueError, "samples: its file .* is damaged"),
        (cut(0), ValueError, "samples: its file .* is damaged"),
        (write_tensor(GOOD.astype("float64")), ValueError, "expected dtype float32, as profile.json says, got F64"),
        (write_tensor(GOOD.view("int32")), ValueError, "expected dtype float32, as profile.json says, got I32"),
        (write_tensor(GOOD[:2]), ValueError, r"expected shape \(3, 2, 3, 12, 10\), .* got \(2, 2, 3, 12, 10\)"),
        (write_tensor(GOOD.swapaxes(3, 4).copy()), ValueError, r"got \(3, 2, 3, 10, 12\) in its files"),
        (write_tensor(GOOD, key="x0"), ValueError, r"to hold this tensor alone, got \['x0'\]"),
        (write_tensor(GOOD, own_id=False), ValueError, "of another one"),
    ],
)
def test_damaged_files_show_on_access(tmp_path, damage, error, message):
    path = saved(tmp_path)
    damage(path)
    loaded = DiffusionProfile.from_pretrained(path)
    loaded["final_sample"]
    for _ in range(2):
        with pytest.raises(error, match=message):
            loaded["samples"]
