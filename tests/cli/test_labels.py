"""Labels on the command line, of checkpoints with and without names for them."""

import pytest
from diffusers import DDIMScheduler, DDPMScheduler

from diffusers_xai import DiffusionProfile, cli
from diffusers_xai.cli.base import CommandError
from diffusers_xai.cli.requests import chosen_label, default_labels, parse_label
from tests.cli.checkpoints import save_tiny, save_unet_2d


FACES = ("Bangs", "Male", "Smiling", "Wearing_Lipstick")


def config(classes, attributes=None, null=-1):
    return {"num_class_embeds": classes, "class_attributes": attributes, "null_class_label": null}


def attributes(count):
    return tuple(f"A{i}" for i in range(count))


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("0011", 3), ("1111", 15), ("1010", 10), ("3", 3), ("0", 0), ("1", 1), ("12", 12),
        ("Smiling,Wearing_Lipstick", 3), ("Male", 4), (" Bangs , Male ", 12), ("-1", -1),
    ],
)  # fmt: skip
def test_labels_of_faces(text, label):
    assert parse_label(text, config(16, FACES)) == label


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "011",
            "one for each of Bangs, Male, Smiling, Wearing_Lipstick, got 3; the integer 11 is written 1011",
        ),
        ("11", "the integer 11 is written 1011"),
        ("00011", "expected 4 digits"),
        ("0012", "an integer in 0..15, 4 digits 0 or 1, or names from Bangs"),
        ("007", "an integer in 0..15"),
        ("16", "0..15"),
        ("Smilling", "Did you mean 'Smiling'"),
    ],
)
def test_labels_that_faces_do_not_have(text, message):
    with pytest.raises(CommandError, match="--label"):
        parse_label(text, config(16, FACES))
    try:
        parse_label(text, config(16, FACES))
    except CommandError as error:
        assert message in str(error)  # noqa: PT017


@pytest.mark.parametrize("text", ["0011", "011", "Smiling", "1000", "-2", "1.0"])
def test_numbered_labels_are_integers_alone(text):
    with pytest.raises(CommandError, match=r"0\.\.999"):
        parse_label(text, config(1000))
    assert parse_label("110", config(1000)) == 110
    assert parse_label("11", config(1000)) == 11


@pytest.mark.parametrize("bits", range(1, 10))
def test_bits_are_as_many_as_attributes(bits):
    named = config(2**bits, attributes(bits))
    assert parse_label("1" * bits, named) == 2**bits - 1
    assert parse_label("0" * bits, named) == 0
    for wrong in {"0" * (bits + 1), "0" * (bits - 1), "1" * (bits + 1)} - {"", "0"}:
        with pytest.raises(CommandError, match=f"expected {bits} digits"):
            parse_label(wrong, named)


def test_default_labels_are_labels_of_the_checkpoint():
    assert default_labels(config(16, FACES)) == (3, 4)
    assert default_labels(config(16, attributes(4))) == (0, 1)
    assert default_labels(config(16)) == (0, 1)
    assert default_labels(config(10, null=0)) == (1, 2)
    assert chosen_label(None, {"num_class_embeds": None}) is None
    with pytest.raises(CommandError, match="takes no labels"):
        chosen_label("3", {"num_class_embeds": None})


@pytest.mark.parametrize("command", [["audit"], ["experiment", "ssim-trajectory"]])
def test_a_network_that_needs_a_prompt_is_refused(command, tmp_path, capsys):
    assert cli.main([*command, "--checkpoint", "drawn-text-32", "--out", str(tmp_path / "out")]) == 2
    assert "got UNet2DConditionModel, which needs encoder_hidden_states" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_a_profile_of_other_classes_takes_their_first(classes, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_unet_2d("other", DDIMScheduler(), num_class_embeds=classes)
    assert cli.main(["profile", "--checkpoint", "other", "--steps", "2", "--no-gradients"]) == 0
    assert DiffusionProfile.from_pretrained("profile").provenance["class_labels"] == [0]
    assert f"Label 0; --label chooses another of 0..{classes - 1}" in capsys.readouterr().err


@pytest.mark.parametrize("bits", [1, 5])
def test_a_profile_of_other_attributes_takes_none_of_them(bits, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_tiny("other", num_class_embeds=2**bits, class_attributes=attributes(bits), class_encoding="bits")
    assert cli.main(["profile", "--checkpoint", "other", "--steps", "2", "--no-gradients"]) == 0
    assert DiffusionProfile.from_pretrained("profile").provenance["class_labels"] == [0]
    assert f"Label {'0' * bits}; --label" in capsys.readouterr().err


def test_steps_by_default_fit_the_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_unet_2d("short", DDPMScheduler(num_train_timesteps=7))
    command = ["profile", "--checkpoint", "short", "--no-gradients", "--quiet"]
    assert cli.main(command) == 0
    assert DiffusionProfile.from_pretrained("profile").provenance["num_inference_steps"] == 7
    assert cli.main([*command, "--scheduler", "ddim", "--out", "b"]) == 0
    assert DiffusionProfile.from_pretrained("b").provenance["num_inference_steps"] == 7
    assert cli.main([*command, "--steps", "8", "--out", "c"]) == 2
