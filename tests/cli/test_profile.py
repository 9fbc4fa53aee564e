import errno
import functools
import html
import re
import shlex
import shutil

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from PIL import Image

from diffusers_xai import ConvNextUNet2DModel, DiffusionProfile, XAIPipeline, cli
from diffusers_xai.cli import profile_folder, profile_run
from diffusers_xai.cli.base import CommandError
from diffusers_xai.measures import channel_sums, structural_similarity


SIZE, STEPS = 16, 4


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    unet = ConvNextUNet2DModel(
        sample_size=SIZE, block_out_channels=(8, 16), num_attention_heads=2, attention_head_dim=4
    )
    path = tmp_path_factory.mktemp("checkpoint") / "tiny"
    XAIPipeline(unet=unet, scheduler=DDPMScheduler()).save_pretrained(path)
    return path


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def profile(checkpoint, capsys):
    """Runs `diffusers-xai profile …`: exit code, stdout, the lines of stderr."""

    def run(*args):
        args = [str(arg) for arg in args]
        for option, value in (("--checkpoint", str(checkpoint)), ("--steps", str(STEPS))):
            args += [] if option in args else [option, value]
        code = cli.main(["profile", *args])
        out, err = capsys.readouterr()
        return code, out, re.split(r"[\r\n]+", err.strip())

    return run


def write_mask(path, size=SIZE, value=255):
    pixels = np.zeros((size, size), dtype=np.uint8)
    pixels[4:12, 4:12] = value
    Image.fromarray(pixels).save(path)
    return pixels > 127


@pytest.fixture
def no_sampling(monkeypatch):
    """Fails the test if more than the rehearsal's one step is sampled."""
    step, calls = DDPMScheduler.step, []

    @functools.wraps(step)
    def guarded(*args, **kwargs):
        calls.append(args)
        assert len(calls) == 1, "sampling began"
        return step(*args, **kwargs)

    monkeypatch.setattr(DDPMScheduler, "step", guarded)


def test_a_profile_with_its_report(profile, place, checkpoint):
    code, out, _ = profile("--out", "a/b")
    assert code == 0
    assert "a/b/report.html" in out
    assert [path.name for path in place.iterdir()] == ["a"]
    assert [path.name for path in (place / "a").iterdir()] == ["b"]
    made = DiffusionProfile.from_pretrained("a/b")
    assert made.provenance["class_labels"] == [3]
    assert made.provenance["seeds"] == [7]
    assert made["samples"].sizes["step"] == made["measures/ssim"].sizes["step"] == STEPS
    layers = {alias for alias, path in made.provenance["layer_aliases"].items() if f"activations/{path}" in made}
    assert {"downs.0.2.fn", "downs.1.2.fn", "mid_attn.fn", "ups.0.2.fn"} <= layers
    assert {"downs.0.3", "downs.1.3", "mid_block2", "ups.0.3"} <= layers

    pipe = XAIPipeline.from_pretrained(checkpoint)
    generator = [torch.Generator().manual_seed(7)]
    image = pipe(class_labels=[3], num_inference_steps=STEPS, generator=generator, output_type="pt").images
    np.testing.assert_array_equal((made["final_sample"].values / 2 + 0.5).clip(0, 1), image.numpy())


def test_the_printed_command_makes_the_profile_again(profile, place, capsys):
    args = ["--label", "Bangs,Smiling", "--seed", 5, "--scheduler", "ddim", "--layers", "downs.*.2.fn"]
    assert profile(*args, "--box", 4, 4, 8, 8, "--ablate", "downs.0.3:0", "--switch", "2:3")[0] == 0
    page = (place / "profile" / "report.html").read_text()
    command = re.search(r"<code>diffusers-xai (profile.*?)</code>", page).group(1)
    command = shlex.split(html.unescape(command))
    command[-1] = "again"
    assert cli.main(command) == 0
    capsys.readouterr()
    first, second = (DiffusionProfile.from_pretrained(name) for name in ("profile", "again"))
    assert first.provenance["class_labels"] == [0b1010]
    assert first.provenance["scheduler"]["class"] == "DDIMScheduler"
    assert list(first) == list(second)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
    edited = [DiffusionProfile.from_pretrained(f"{name}/edited") for name in ("profile", "again")]
    np.testing.assert_array_equal(*(run["final_sample"] for run in edited))


@pytest.mark.parametrize(
    ("args", "texts"),
    [
        (["--label", 17], ["17", "0..15"]),
        (["--label", "-3"], ["-3"]),
        (["--label", "Smilling"], ["Smilling", "'Smiling'", "Wearing_Lipstick"]),
        (["--layers", "downs.7.*"], ["downs.7.*", "nearest"]),
        (["--seed", "1.5"], ["--seed", "1.5"]),
        (["--every", 0], ["--every", "1..1000000"]),
        (["--steps", "many"], ["--steps", "many"]),
        (["--steps", 5000], ["5000", "1000"]),
        (["--scheduler", "none"], ["--scheduler", "ddpm"]),
        (["--device", "cuda:99"], ["--device cuda:99"]),
        (["--device", "nonsense"], ["--device nonsense"]),
        (["--checkpoint", "no/such/folder"], ["no checkpoint at no/such/folder"]),
        (["--checkpoint", "."], ["cannot load the checkpoint .", "model_index.json"]),
        (["--mask", "nowhere.png"], ["--mask nowhere.png"]),
        (["--mask", "notes.txt"], ["--mask notes.txt", "image"]),
        (["--mask", "black.png"], ["--mask black.png", "empty"]),
        (["--mask", "large.png"], ["16", "20"]),
        (["--box", 4, 4, 4, 8], ["--box 4 4 4 8", "left < right"]),
        (["--box", 4, 4, 8, 17], ["--box 4 4 8 17", "16"]),
        (["--box", 4, 4, 8], ["--box", "4"]),
        (["--box", 4, 4, 8, 8, "--mask", "large.png"], ["--mask", "not allowed", "--box"]),
        (["--ablate", "downs.0.3"], ["--ablate", "LAYER:CHANNEL"]),
        (["--ablate", "downs.0.3:-1"], ["--ablate", "LAYER:CHANNEL", "downs.0.3:-1"]),
        (["--ablate", "downs.0.3:first"], ["--ablate", "max", "downs.0.3:first"]),
        (["--ablate", "downs.7.3:max"], ["--ablate downs.7.3", "nearest"]),
        (["--ablate", "downs.0.3:99"], ["99", "0..7"]),
        (["--switch", "2"], ["--switch", "STEP:LABEL"]),
        (["--switch", "4:0011"], ["--switch 4:0011", "0..3"]),
        (["--switch", "2:17"], ["--switch 2: 17", "0..15"]),
        (["--switch", "2:0011"], ["--switch 2:0011", "holds already"]),
        (["--switch", "2:0111", "--switch", "2:0001"], ["--switch", "each step once"]),
        (["--guidance-scale", "2", "--revision", "main"], ["--revision main", "on the Hub"]),
        (["--out", "notes.txt/sub"], ["notes.txt"]),
        (["--out", "there"], ["got there, which exists", "--overwrite"]),
        (["--out", "there", "--overwrite"], ["--overwrite: expected a profile", "got there"]),
        (["--nonsense"], ["--nonsense"]),
    ],
)
def test_bad_input_is_one_line_before_sampling(profile, place, no_sampling, args, texts):
    (place / "notes.txt").write_text("text")
    (place / "there").mkdir()
    (place / "there" / "mine.txt").write_text("mine")
    write_mask(place / "black.png", value=0)
    write_mask(place / "large.png", size=20)
    before = sorted(place.rglob("*"))
    code, out, err = profile(*args)
    assert code == 2
    assert out == ""
    assert err[-1].startswith("diffusers-xai: error: ")
    assert sum("error" in line for line in err) == 1
    assert all(text in err[-1] for text in texts), err[-1]
    assert sorted(place.rglob("*")) == before


def test_a_command_is_required(capsys):
    assert cli.main([]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_debug_shows_the_traceback(profile, place):
    with pytest.raises(CommandError):
        profile("--label", 17, "--debug")


def test_overwrite_replaces_a_profile_when_the_new_one_is_complete(profile, place, monkeypatch):
    assert profile("--seed", 1)[0] == 0
    (place / "profile" / "left.txt").write_text("old")
    monkeypatch.setattr(profile_folder, "write_report", raise_full_disk)
    assert profile("--seed", 2, "--overwrite")[0] == 2
    assert DiffusionProfile.from_pretrained("profile").provenance["seeds"] == [1]
    monkeypatch.undo()
    monkeypatch.chdir(place)
    assert profile("--seed", 2, "--overwrite")[0] == 0
    assert DiffusionProfile.from_pretrained("profile").provenance["seeds"] == [2]
    assert [path.name for path in place.iterdir()] == ["profile"]
    assert not (place / "profile" / "left.txt").exists()


def raise_full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("where", ["save", "report"])
def test_a_full_disk_leaves_nothing(profile, place, monkeypatch, where):
    if where == "save":
        monkeypatch.setattr(DiffusionProfile, "save_pretrained", raise_full_disk)
    else:
        monkeypatch.setattr(profile_folder, "write_report", raise_full_disk)
    code, _, err = profile("--out", "a/b")
    assert code == 2
    assert "No space left on device" in err[-1]
    assert list(place.iterdir()) == []


def test_too_little_space_is_seen_before_sampling(profile, place, monkeypatch, no_sampling):
    usage = shutil.disk_usage(place)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    code, _, err = profile()
    assert code == 2
    assert "has 1 kB free, the profile takes" in err[-1]


@pytest.mark.parametrize("where", ["sampling", "report"])
def test_an_interruption_leaves_nothing(profile, place, monkeypatch, where):
    @functools.wraps(DDPMScheduler.step)
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    if where == "sampling":
        monkeypatch.setattr(DDPMScheduler, "step", interrupt)
    else:
        monkeypatch.setattr(profile_folder, "write_report", interrupt)
    code, _, err = profile()
    assert code == 130
    assert "interrupted" in err[-1]
    assert list(place.iterdir()) == []


def test_a_mask_chooses_the_max_channels(profile, place):
    mask = write_mask(place / "mask.png")
    assert profile("--mask", "mask.png", "--layers", "downs.0.2.fn", "--no-gradients")[0] == 0
    made = DiffusionProfile.from_pretrained("profile")
    stored = np.asarray(Image.open("profile/mask.png"))
    np.testing.assert_array_equal(stored, mask)
    page = (place / "profile" / "report.html").read_text()
    shown = [int(channel) for channel in re.findall(r'"c\*=(\d+)"', page)]
    activation = torch.from_numpy(made["activations/downs.0.2.fn"].values[:, 0].copy())
    assert shown == channel_sums(activation, torch.from_numpy(mask)).argmax(1).tolist()


def test_gradients_of_a_region(profile, place):
    assert profile("--box", 4, 6, 7, 8, "--every", 2)[0] == 0
    made = DiffusionProfile.from_pretrained("profile")
    volume = made["gradient_volume"]
    assert list(zip(volume["row"].values, volume["column"].values, strict=True)) == [
        (row, column) for row in (6, 7) for column in (4, 5, 6)
    ]
    assert volume["timestep"].values.tolist() == [750, 500, 0]  # nearest to 950, 600 and 100 of 750, 500, 250, 0
    assert made["gradient_energy"].sizes["step"] == STEPS
    assert made["gradient_maps/downs.0.2.fn"].sizes["step"] == STEPS
    page = (place / "profile" / "report.html").read_text()
    assert "The same, pixel by pixel" in page
    assert "Through which places the layers act on it" in page
    expected = np.zeros((SIZE, SIZE), dtype=bool)
    expected[6:8, 4:7] = True
    np.testing.assert_array_equal(np.asarray(Image.open("profile/mask.png")), expected)


def test_gradients_of_the_whole_image_are_an_energy(profile, place):
    assert profile()[0] == 0
    made = DiffusionProfile.from_pretrained("profile")
    assert "gradient_energy" in made
    assert "gradient_volume" not in made
    assert not (place / "profile" / "mask.png").exists()
    assert "Which pixels the whole image depends on" in (place / "profile" / "report.html").read_text()


def test_a_large_region_has_an_energy_and_no_volume(profile, place, monkeypatch):
    monkeypatch.setattr(profile_run, "_VOLUME_BYTES", 10_000)
    code, _, err = profile("--box", 0, 0, 8, 8)
    assert code == 0
    assert any("too large" in line for line in err)
    made = DiffusionProfile.from_pretrained("profile")
    assert "gradient_energy" in made
    assert "gradient_volume" not in made


def test_no_gradients(profile, place):
    assert profile("--box", 4, 4, 12, 12, "--no-gradients")[0] == 0
    made = DiffusionProfile.from_pretrained("profile")
    assert not [name for name in made if name.startswith(("gradient", "label"))]


def test_ablation_of_the_max_channel_beside_the_intact_run(profile, place, checkpoint):
    mask = write_mask(place / "mask.png")
    assert profile("--mask", "mask.png", "--ablate", "downs.0.3:max,2", "--layers", "mid_attn.fn")[0] == 0
    intact, edited = (DiffusionProfile.from_pretrained(path) for path in ("profile", "profile/edited"))
    record = intact["activations/downs.0.3"].sel(step=2).values  # t = 250, the nearest to 200
    channel = int(channel_sums(torch.from_numpy(record.copy()), torch.from_numpy(mask)).argmax())
    channels = sorted({channel, 2})

    pipe = XAIPipeline.from_pretrained(checkpoint)

    def ablate(module, args, output):
        changed = output.clone()
        changed[:, channels] = 0
        return changed

    pipe.unet.get_submodule(pipe.unet.layer_aliases["downs.0.3"]).register_forward_hook(ablate)
    generator = [torch.Generator().manual_seed(7)]
    images = pipe(class_labels=[3], num_inference_steps=STEPS, generator=generator, output_type="pt").images
    np.testing.assert_array_equal((edited["final_sample"].values / 2 + 0.5).clip(0, 1), images.numpy())
    page = (place / "profile" / "report.html").read_text()
    assert f"channel{'s' * (len(channels) > 1)} {', '.join(map(str, channels))} of downs.0.3 set to zero" in page
    seen = (torch.from_numpy(run["final_sample"].values.copy()).clamp(-1, 1) for run in (intact, edited))
    assert f"SSIM {structural_similarity(*seen).item():.3f}" in page


def test_a_label_switch_beside_the_unswitched_run(profile, place):
    assert profile("--label", "0011", "--switch", "0:1100", "--no-gradients")[0] == 0
    assert profile("--label", "1100", "--no-gradients", "--out", "other")[0] == 0
    switched = DiffusionProfile.from_pretrained("profile/edited")
    other = DiffusionProfile.from_pretrained("other")
    np.testing.assert_array_equal(switched["final_sample"], other["final_sample"])
    page = (place / "profile" / "report.html").read_text()
    assert "the label switched to Bangs, Male, not Smiling, not Wearing_Lipstick from step 0 on" in page


def test_the_printed_python_makes_both_runs_again(profile, place):
    assert profile("--box", 4, 6, 7, 8, "--ablate", "downs.0.3:1", "--switch", "2:0000")[0] == 0
    page = (place / "profile" / "report.html").read_text()
    code = html.unescape(re.search(r"In Python</h3><pre><code>(.*?)</code>", page, re.DOTALL).group(1))
    first = [DiffusionProfile.from_pretrained(path) for path in ("profile", "profile/edited")]
    first = [{name: run[name].values for name in run} for run in first]
    shutil.rmtree("profile")
    exec(compile(code, "report.html", "exec"), {})
    for before, path in zip(first, ("profile", "profile/edited"), strict=True):
        again = DiffusionProfile.from_pretrained(path)
        assert list(before) == list(again)
        for name, values in before.items():
            np.testing.assert_array_equal(again[name].values, values)


def test_every_keeps_a_stride(profile, place):
    assert profile("--every", 3)[0] == 0
    made = DiffusionProfile.from_pretrained("profile")
    assert made["samples"]["step"].values.tolist() == [0, 3]
    assert made["measures/ssim"].sizes["step"] == STEPS


def test_a_large_profile_gets_a_larger_stride(profile, place, monkeypatch):
    monkeypatch.setattr(profile_run, "_PROFILE_BYTES", 1)
    assert profile()[0] == 0
    assert DiffusionProfile.from_pretrained("profile")["samples"].sizes["step"] == 1


def test_threads_are_set_for_the_run_only(profile, place, monkeypatch):
    before, seen = torch.get_num_threads(), []
    monkeypatch.setattr(
        DDPMScheduler, "scale_model_input", lambda self, x, t: seen.append(torch.get_num_threads()) or x
    )
    assert profile("--threads", before + 1)[0] == 0
    assert set(seen) == {before + 1}
    assert torch.get_num_threads() == before


def test_an_unconditional_model_of_diffusers(place, capsys):
    unet = UNet2DModel(
        sample_size=SIZE,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=4,
    )
    XAIPipeline(unet=unet, scheduler=DDIMScheduler()).save_pretrained("plain")
    assert cli.main(["profile", "--checkpoint", "plain", "--steps", "2"]) == 0
    made = DiffusionProfile.from_pretrained("profile")
    assert "attention_outputs" in made
    assert any(name.startswith("activations/") for name in made)
    assert cli.main(["profile", "--checkpoint", "plain", "--label", "3", "--out", "b"]) == 2
    assert "takes no labels" in capsys.readouterr().err


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert re.fullmatch(r"diffusers-xai \d.*\n", capsys.readouterr().out)
