"""A profile's folder appears whole or not at all, whatever goes wrong."""

import errno
import os
from pathlib import Path

import pytest
import safetensors.numpy

from diffusers_xai.profile import DiffusionProfile, storage
from tests.profile.profiles import assert_bit_identical, make_profile


resource = pytest.importorskip("resource")


def listing(folder):
    return sorted(file.name for file in folder.iterdir())


def fail_at(monkeypatch, owner, name, call, error):
    """Makes the `call`-th call of `owner.name` raise; one that writes a file leaves it there."""
    real, calls = getattr(owner, name), []

    def failing(*args, **kwargs):
        calls.append(args)
        if len(calls) == call:
            if name in ("save_file", "write_text"):
                real(*args, **kwargs)
            raise error
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, failing)


FULL = OSError(errno.ENOSPC, "No space left on device")
FAILURES = {
    "first array": (safetensors.numpy, "save_file", 1, FULL),
    "second array": (safetensors.numpy, "save_file", 2, FULL),
    "in safetensors": (safetensors.numpy, "save_file", 2, safetensors.SafetensorError("I/O error: no space")),
    "interrupt": (safetensors.numpy, "save_file", 3, KeyboardInterrupt()),
    "index": (Path, "write_text", 1, FULL),
    "flush": (os, "fsync", 4, FULL),
    "folder": (Path, "mkdir", 2, FULL),
    "move": (os, "rename", 1, FULL),
    "interrupted move": (os, "rename", 1, KeyboardInterrupt()),
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
def test_a_new_profile_that_fails_leaves_nothing(tmp_path, monkeypatch, failure):
    fail_at(monkeypatch, *failure)
    with pytest.raises((OSError, KeyboardInterrupt)):
        make_profile().save_pretrained(tmp_path / "fox")
    assert listing(tmp_path) == []


@pytest.mark.parametrize(
    "failure", [*FAILURES.values(), (os, "rename", 2, FULL)], ids=[*FAILURES, "move after the old one made way"]
)
def test_an_existing_profile_survives_a_failure(tmp_path, monkeypatch, failure):
    old = make_profile()
    old.save_pretrained(tmp_path / "fox")
    with monkeypatch.context() as patch:
        fail_at(patch, *failure)
        with pytest.raises((OSError, KeyboardInterrupt)):
            make_profile(seed=9).save_pretrained(tmp_path / "fox", overwrite=True)
    assert listing(tmp_path) == ["fox"]
    assert_bit_identical(DiffusionProfile.from_pretrained(tmp_path / "fox"), old)


def in_child_process(action):
    """Runs `action` in a fork and gives its exit status, or the signal that ended it as a negative number."""
    child = os.fork()
    if child == 0:
        try:
            action()
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_at_rename(number):
    """`os.rename` that ends the process like a power cut at its `number`-th call: no cleaning up."""
    real, calls = os.rename, []

    def rename(source, target):
        calls.append(source)
        if len(calls) == number:
            os._exit(9)
        real(source, target)

    return rename


def test_killed_before_the_move_leaves_no_profile(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "rename", kill_at_rename(1))
    assert in_child_process(lambda: make_profile().save_pretrained(tmp_path / "fox")) == 9
    assert not (tmp_path / "fox").exists()
    assert all(name.startswith(".fox.") for name in listing(tmp_path))


def test_killed_before_the_move_keeps_the_old_profile(tmp_path, monkeypatch):
    old = make_profile()
    old.save_pretrained(tmp_path / "fox")
    monkeypatch.setattr(os, "rename", kill_at_rename(1))
    assert in_child_process(lambda: make_profile(9).save_pretrained(tmp_path / "fox", overwrite=True)) == 9
    assert [name for name in listing(tmp_path) if not name.startswith(".")] == ["fox"]
    assert_bit_identical(DiffusionProfile.from_pretrained(tmp_path / "fox"), old)


def test_killed_between_the_moves_loses_nothing_and_is_explained(tmp_path, monkeypatch):
    old, new = make_profile(), make_profile(9)
    old.save_pretrained(tmp_path / "fox")
    monkeypatch.setattr(os, "rename", kill_at_rename(2))
    assert in_child_process(lambda: new.save_pretrained(tmp_path / "fox", overwrite=True)) == 9
    before, after = sorted(listing(tmp_path), reverse=True)
    assert_bit_identical(DiffusionProfile.from_pretrained(tmp_path / before), old)
    assert_bit_identical(DiffusionProfile.from_pretrained(tmp_path / after), new)
    with pytest.raises(FileNotFoundError) as error:
        DiffusionProfile.from_pretrained(tmp_path / "fox")
    assert f"an interrupted save left {after} and {before} beside it" in str(error.value)


def test_a_file_system_that_really_refuses_to_write(tmp_path):
    def save_with_small_files_only():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        try:
            make_profile().save_pretrained(tmp_path / "fox")
        except OSError as error:
            os._exit(0 if "Could not write 'samples'" in str(error) and not listing(tmp_path) else 2)

    assert in_child_process(save_with_small_files_only) == 0


def test_an_existing_target_is_kept_unless_told_otherwise(tmp_path):
    make_profile().save_pretrained(tmp_path / "fox")
    with pytest.raises(
        FileExistsError, match="a new folder, got .*fox, which exists: choose another, or pass overwrite=True"
    ):
        make_profile(9).save_pretrained(tmp_path / "fox")
    assert_bit_identical(DiffusionProfile.from_pretrained(tmp_path / "fox"), make_profile())
    (tmp_path / "fox" / "notes.txt").touch()
    make_profile(9).save_pretrained(tmp_path / "fox", overwrite=True)
    assert_bit_identical(DiffusionProfile.from_pretrained(tmp_path / "fox"), make_profile(9))
    assert listing(tmp_path) == ["fox"]
    assert "notes.txt" not in listing(tmp_path / "fox")


def test_what_came_there_while_it_was_written_is_kept(tmp_path, monkeypatch):
    write = safetensors.numpy.save_file

    def meanwhile(*args, **kwargs):
        (tmp_path / "fox").mkdir(exist_ok=True)
        (tmp_path / "fox" / "mine.txt").touch()
        return write(*args, **kwargs)

    monkeypatch.setattr(safetensors.numpy, "save_file", meanwhile)
    with pytest.raises(FileExistsError, match="fox"):
        make_profile().save_pretrained(tmp_path / "fox")
    assert listing(tmp_path) == ["fox"]
    assert listing(tmp_path / "fox") == ["mine.txt"]


def test_overwrite_replaces_profiles_and_empty_folders_only(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").touch()
    (tmp_path / "file").touch()
    for name in ("thesis", "file"):
        with pytest.raises(FileExistsError, match=f"a profile to overwrite, got .*{name}"):
            make_profile().save_pretrained(tmp_path / name, overwrite=True)
    assert (tmp_path / "thesis" / "chapter.tex").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileExistsError, match="which exists"):
        make_profile().save_pretrained(tmp_path / "empty")
    make_profile().save_pretrained(tmp_path / "empty", overwrite=True)
    assert listing(tmp_path) == ["empty", "file", "thesis"]


def test_nothing_is_written_when_the_target_is_refused(tmp_path, monkeypatch):
    make_profile().save_pretrained(tmp_path / "fox")
    monkeypatch.setattr(storage, "ProfileWriter", None)
    with pytest.raises(FileExistsError):
        make_profile().save_pretrained(tmp_path / "fox")


def test_a_loaded_profile_can_replace_itself(tmp_path):
    make_profile().save_pretrained(tmp_path / "fox")
    loaded = DiffusionProfile.from_pretrained(tmp_path / "fox")
    loaded.provenance["note"] = "seen"
    loaded.save_pretrained(tmp_path / "fox", overwrite=True)
    again = DiffusionProfile.from_pretrained(tmp_path / "fox")
    assert_bit_identical(again, make_profile())
    assert_bit_identical(loaded, make_profile())
    assert again.provenance["note"] == "seen"


def test_a_profile_that_was_overwritten_since_it_was_opened_never_mixes(tmp_path):
    make_profile().save_pretrained(tmp_path / "fox")
    opened = DiffusionProfile.from_pretrained(tmp_path / "fox")
    opened["samples"]
    make_profile(9).save_pretrained(tmp_path / "fox", overwrite=True)
    assert opened["samples"].identical(make_profile()["samples"])
    with pytest.raises(
        ValueError,
        match="final_sample: expected a file of this profile, got .* of another one. If the folder was overwritten",
    ):
        opened["final_sample"]


def test_provenance_without_json_form_is_refused_before_writing(tmp_path):
    profile = make_profile()
    profile.provenance["model"] = object()
    with pytest.raises(TypeError, match=r"provenance\['model'\]"):
        profile.save_pretrained(tmp_path / "fox")
    assert listing(tmp_path) == []
