"""The models of a server, and what can be chosen of each."""

import numpy as np
import pytest
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler

from diffusers_xai import XAIPipeline
from diffusers_xai.app import models, settings, shown
from diffusers_xai.checkpoints import demo_checkpoint, part_of_face
from diffusers_xai.cli.profile_request import ProfileRequest
from diffusers_xai.measures import mask_from_box
from tests.tiny import convnext_unet, unet_2d


LIMITS = settings.Limits()


def make(unet, scheduler=None):
    return models.Model("tiny", XAIPipeline(unet, scheduler or DDPMScheduler()))


def test_models_of_folders_stand_before_the_embedded_one(tmp_path):
    for name in ("cats", "digits"):
        DDPMPipeline(unet_2d(), DDPMScheduler()).save_pretrained(tmp_path / name)
    found = models.load_models([str(tmp_path / "cats"), str(tmp_path / "digits")])
    assert list(found) == ["cats", "digits", models.DEMO, models.FAST, models.DRAWN]
    assert [model.name for model in found.values()] == list(found)
    assert found["cats"].classes == 0
    assert found[models.DEMO].attributes == ["Bangs", "Male", "Smiling", "Wearing_Lipstick"]


def test_checkpoints_that_cannot_be_offered_are_told(tmp_path):
    with pytest.raises(ValueError, match="no checkpoint at nowhere"):
        models.load_models(["nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="cannot load the checkpoint .*model_index.json"):
        models.load_models([str(tmp_path / "empty")])
    for parent in ("a", "b"):
        DDPMPipeline(unet_2d(), DDPMScheduler()).save_pretrained(tmp_path / parent / "cats")
    with pytest.raises(ValueError, match="got two called cats"):
        models.load_models([str(tmp_path / parent / "cats") for parent in ("a", "b")])


def test_labels_by_attribute_by_number_and_none():
    faces = make(convnext_unet())  # Bangs, Male, Smiling, Wearing_Lipstick: the first is the most significant bit
    assert faces.label_of(["Smiling", "Bangs"], 3) == 0b1010
    assert faces.names_of(0b0101) == ["Male", "Wearing_Lipstick"]
    classes = make(unet_2d(num_class_embeds=10))
    assert classes.label_of(None, 7) == 7
    assert classes.names_of(7) == []
    assert make(unet_2d()).label_of(["Smiling"], 3) is None


@pytest.mark.parametrize(
    ("unet", "visible"),
    [
        (convnext_unet(), {"label_names", "switch_names", "sweep_names", "switch_panel", "examples"}),
        (unet_2d(num_class_embeds=10), {"label_class", "switch_class", "sweep_class", "switch_panel"}),
        (unet_2d(), set()),
    ],
    ids=["attributes", "classes", "no labels"],
)
def test_what_is_shown_of_a_model(unet, visible):
    model = make(unet)
    values = shown.shown(model, model.default(LIMITS), LIMITS)
    optional = {name for name in values if name.startswith(("label", "switch_", "sweep_", "examples"))}
    assert {name for name in optional if values[name].get("visible")} == visible
    assert values["sweep"]["interactive"] == bool(visible)
    assert values["blocks"]["choices"] == list(model.blocks)


def test_attention_is_known_before_a_run():
    assert make(unet_2d()).has_attention
    assert not make(unet_2d(attention=False)).has_attention
    assert make(convnext_unet()).has_attention


def test_slots_follow_the_chosen_blocks():
    model = make(unet_2d())
    values = shown.shown_slots(model, ["up_blocks.0", "down_blocks.1"], ["up_blocks.0.resnets.1"], LIMITS)
    assert [values[f"slot_{i}"].get("label") for i in range(6)] == [
        "Layer of down_blocks.1", "Layer of up_blocks.0", None, None, None, None
    ]  # fmt: skip
    assert values["slot_0"]["value"] == "down_blocks.1.attentions.0"  # the attention layer, by default
    assert values["slot_1"]["value"] == "up_blocks.0.resnets.1"
    assert ("down_blocks.1.resnets.0", "down_blocks.1.resnets.0") in values["slot_0"]["choices"]
    assert [values[f"slot_{i}"]["visible"] for i in range(6)] == [True, True, False, False, False, False]


def test_limits_are_those_of_the_model():
    limits = make(unet_2d(), DDIMScheduler(num_train_timesteps=60)).limits(settings.Limits())
    assert limits.max_steps == 60
    model = make(unet_2d(), DDIMScheduler(num_train_timesteps=60))
    assert model.step_choices(LIMITS, 60) == [25, 50, 60]
    assert (model.default(LIMITS).steps, model.default(LIMITS).every) == (50, 5)


def test_the_default_region_is_that_of_the_command_line_and_of_the_experiments():
    offered = models.load_models()
    eyes = np.zeros((32, 32), dtype=bool)
    eyes[11:17, 7:25] = True
    for name, expected in ((models.FAST, eyes), (models.DEMO, np.kron(eyes, np.ones((2, 2), dtype=bool)))):
        checkpoint, size = demo_checkpoint(models.EMBEDDED[name]), expected.shape
        assert np.array_equal(offered[name].default_mask(), expected)
        for box in (ProfileRequest(checkpoint=checkpoint).region_box(size), part_of_face("eyes", checkpoint, size)):
            assert np.array_equal(mask_from_box(box, size), expected)
    # Elsewhere, where the command line asks for a region: a quarter of the image, in its middle.
    for unet in (convnext_unet(sample_size=32), convnext_unet(sample_size=64), convnext_unet()):
        middle = make(unet).default_mask()
        assert middle.sum() == middle.size // 4
        assert np.array_equal(middle, middle[::-1, ::-1])
    assert np.array_equal(offered[models.DRAWN].default_mask(), make(convnext_unet(sample_size=32)).default_mask())


def test_the_default_switch_goes_to_another_label():
    for unet in (convnext_unet(), unet_2d(num_class_embeds=2), unet_2d(num_class_embeds=10)):
        default = make(unet).default(LIMITS)
        assert default.switch_to != default.label
        assert 0 <= default.switch_to < unet.config.num_class_embeds


def test_a_layer_s_channels_are_those_of_its_output():
    model = make(unet_2d())
    found = {}
    hooks = [
        model.pipe.unet.get_submodule(path).register_forward_hook(
            lambda module, args, output, path=path: found.setdefault(path, output)
        )
        for path in model.layers
    ]
    model.pipe(num_inference_steps=1)
    for hook in hooks:
        hook.remove()
    outputs = {path: output[0] if isinstance(output, tuple) else output for path, output in found.items()}
    assert model.channels == {path: output.shape[1] for path, output in outputs.items()}


def test_another_scheduler_is_there_for_a_run_only():
    model = make(unet_2d())
    own = model.pipe.scheduler
    with model.scheduled("DDIM"):
        assert type(model.pipe.scheduler) is DDIMScheduler
    assert model.pipe.scheduler is own
