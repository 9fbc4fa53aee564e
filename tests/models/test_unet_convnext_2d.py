import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DOutput

from diffusers_xai import ConvNextUNet2DModel
from diffusers_xai.models.label_channels import LabelChannels
from tests.reference import article_unet
from tests.tiny import convnext_unet


def noise(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("mid_softmax", [True, False], ids=["softmax", "linear"])
@pytest.mark.parametrize("first_width", ["dim", "article"])
@pytest.mark.parametrize("dim", [16, pytest.param(64, id="64")])
def test_outputs_equal_the_independent_evaluation(dim, first_width, mid_softmax):
    first_width = dim if first_width == "dim" else dim // 3 * 2
    state = article_unet.random_state(dim=dim, first_width=first_width, mid_softmax=mid_softmax)
    unet = ConvNextUNet2DModel.from_annotated(state, sample_size=16).eval()
    labels, timesteps = torch.tensor([3, 11]), torch.tensor([5, 700])
    sample = noise(2, 3, 16, 24)
    channel = labels[:, None, None, None].expand(-1, 1, 16, 24)
    expected = article_unet.forward(state, torch.cat([sample, channel], dim=1), timesteps)

    with torch.no_grad():
        output = unet(sample, timesteps, class_labels=labels).sample

    assert (output - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert unet.config.conv_in_channels == first_width
    assert unet.config.mid_attention_type == ("softmax" if mid_softmax else "linear")
    assert sum(p.numel() for p in unet.parameters()) == sum(w.numel() for w in state.values())


def test_article_weights_with_bit_channels_and_without_labels():
    bits = ConvNextUNet2DModel.from_annotated(article_unet.random_state(dim=8, in_channels=7))
    assert bits.config.class_encoding == "bits"
    assert bits.config.num_class_embeds == 16
    unconditional_state = article_unet.random_state(dim=8, in_channels=3)
    unconditional = ConvNextUNet2DModel.from_annotated(unconditional_state).eval()
    sample = noise(1, 3, 16, 16)
    with torch.no_grad():
        output = unconditional(sample, 20).sample
    expected = article_unet.forward(unconditional_state, sample, torch.tensor([20]))
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)


def test_from_annotated_refuses_other_state_dicts():
    state = article_unet.random_state(dim=8)
    with pytest.raises(ValueError, match=r"'init_conv.weight' is missing|article-style"):
        ConvNextUNet2DModel.from_annotated({"encoder.weight": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"unexpected \['extra.weight'\]"):
        ConvNextUNet2DModel.from_annotated({**state, "extra.weight": torch.zeros(1)})
    del state["ups.0.1.net.1.bias"]
    with pytest.raises(ValueError, match=r"missing \['up_blocks.0.resnets.1.net.1.bias'\]"):
        ConvNextUNet2DModel.from_annotated(state)


def test_save_and_load_is_bit_identical(tmp_path):
    unet = convnext_unet(class_encoding="bits", mid_attention_type="softmax")
    unet.save_pretrained(tmp_path)
    loaded = ConvNextUNet2DModel.from_pretrained(tmp_path)
    assert [f.name for f in tmp_path.glob("*.safetensors")] == ["diffusion_pytorch_model.safetensors"]
    for field in ("sample_size", "block_out_channels", "class_encoding", "mid_attention_type", "class_attributes"):
        assert list(np.atleast_1d(loaded.config[field])) == list(np.atleast_1d(unet.config[field]))
    for name, tensor in unet.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    sample, labels = noise(1, 3, 16, 16), torch.tensor([9])
    with torch.no_grad():
        assert torch.equal(unet(sample, 3, labels).sample, loaded(sample, 3, labels).sample)


def test_every_article_path_names_the_layer_with_the_same_output():
    """Each alias's hooked output equals what the same-named module of an article-style network would return."""
    unet = convnext_unet(block_out_channels=(8, 16, 16))
    modules = dict(unet.named_modules())
    aliases = unet.layer_aliases
    state = article_unet.random_state(dim=8, multipliers=(1, 2, 2))
    article_modules = {name.rpartition(".")[0] for name in state}
    assert article_modules <= aliases.keys()
    containers = {
        f"{stage}.{i}.{j}{tail}"
        for stage, count in (("downs", 3), ("ups", 2))
        for i in range(count)
        for j, tail in ((0, ""), (0, ".net"), (1, ".net"), (1, ""), (2, ""), (2, ".fn"), (3, ""))
    }
    containers |= {
        "mid_block1",
        "mid_attn",
        "mid_attn.fn",
        "mid_block2",
        "mid_block2.res_conv",
        "downs.0.0.res_conv",
        "init_conv",
        "final_conv",
        "final_conv.0",
        "final_conv.1",
        "downs.0",
        "ups.1",
        "downs.1.0.ds_conv",
    }
    assert containers <= aliases.keys()
    assert set(aliases.values()) <= modules.keys()

    outputs = {}
    for alias in ("downs.1.1", "downs.1.2", "downs.1.2.fn", "downs.1.3", "mid_attn.fn", "mid_attn", "mid_block1"):
        modules[aliases[alias]].register_forward_hook(lambda m, a, out, alias=alias: outputs.update({alias: out}))
    with torch.no_grad():
        unet(noise(1, 3, 16, 16), 5, torch.tensor([1]))
    # downs.i.2 is the residual sum of downs.i.1 and downs.i.2.fn; downs.i.3 is the down-sampled result
    assert torch.equal(outputs["downs.1.2"], outputs["downs.1.1"] + outputs["downs.1.2.fn"])
    assert torch.equal(outputs["mid_attn"], outputs["mid_block1"] + outputs["mid_attn.fn"])
    assert outputs["downs.1.3"].shape == (1, 16, 4, 4)


@pytest.mark.parametrize(
    ("encoding", "label", "expected"),
    [
        ("integer", 11, [11.0]),
        ("integer", -1, [-1.0]),
        ("scaled", 15, [1.0]),
        ("scaled", 3, [0.2]),
        ("scaled", -1, [-1.0]),
        ("bits", 0b1010, [1.0, -1.0, 1.0, -1.0]),
        ("bits", 0b0011, [-1.0, -1.0, 1.0, 1.0]),
        ("bits", -1, [0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_label_channels(encoding, label, expected):
    channels = LabelChannels(16, encoding, null_label=-1)(torch.tensor([label]), 2, 3, torch.float32)
    assert channels.shape == (1, len(expected), 2, 3)
    torch.testing.assert_close(channels, torch.tensor(expected)[None, :, None, None].expand(1, -1, 2, 3))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "got None"),
        (torch.tensor([16]), r"values 0..15 or the null label -1, got \[16\]"),
        (torch.tensor([-2]), r"got \[-2\]"),
        (torch.tensor([1, 2]), r"shape \(1,\)"),
        (torch.tensor([[1]]), r"got shape \(1, 1\)"),
        (torch.tensor([1.0]), "torch.float32"),
    ],
)
def test_bad_labels_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        convnext_unet()(noise(1, 3, 16, 16), 3, labels)


def test_bad_samples_and_configs_are_refused():
    unet = convnext_unet()
    with pytest.raises(ValueError, match="divisible by the total stride 2"):
        unet(noise(1, 3, 16, 15), 3, torch.tensor([0]))
    with pytest.raises(ValueError, match=r"shape \(batch, 3, height, width\)"):
        unet(noise(1, 4, 16, 16), 3, torch.tensor([0]))
    with pytest.raises(ValueError, match="Expected `class_labels` None"):
        convnext_unet(num_class_embeds=None)(noise(1, 3, 16, 16), 3, torch.tensor([0]))
    for config, message in [
        ({"class_encoding": "onehot"}, "class_encoding"),
        ({"mid_attention_type": "flash"}, "mid_attention_type"),
        ({"null_class_label": 3}, "null_class_label"),
        ({"num_class_embeds": 10, "class_encoding": "bits", "class_attributes": None}, "power of 2"),
        ({"class_attributes": ("Smiling",)}, "1 names make 2 labels"),
    ]:
        with pytest.raises(ValueError, match=message):
            convnext_unet(**config)


def test_forward_signature_and_output_follow_unet_2d_model():
    unet = convnext_unet()
    sample, labels = noise(2, 3, 16, 8), torch.tensor([0, 15])
    with torch.no_grad():
        output = unet(sample, 7, class_labels=labels)
        as_tuple = unet(sample, torch.tensor(7), class_labels=labels, return_dict=False)
        per_sample = unet(sample, torch.tensor([7, 7]), class_labels=labels)
    assert isinstance(output, UNet2DOutput)
    assert output.sample.shape == sample.shape
    assert isinstance(as_tuple, tuple)
    assert torch.equal(as_tuple[0], output.sample)
    assert torch.equal(per_sample.sample, output.sample)


def test_a_training_step_reads_nothing_back_from_the_device():
    sample, labels = (torch.empty(2, 3, 16, 16, device="meta"), torch.zeros(2, dtype=torch.int64, device="meta"))
    output = convnext_unet().to("meta").train()(sample, torch.zeros(2, device="meta"), labels).sample  # has no values
    assert output.shape == sample.shape


def test_attention_runs_through_processors():
    unet = convnext_unet()
    expected_paths = {
        f"{block}.attentions.0.attn.processor"
        for block in ("down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0")
    }
    assert unet.attn_processors.keys() == expected_paths

    class Zero:
        def __call__(self, attn, hidden_states):
            return torch.zeros_like(hidden_states)

    originals = unet.attn_processors
    sample, labels = noise(1, 3, 16, 16), torch.tensor([4])
    with torch.no_grad():
        before = unet(sample, 7, labels).sample
        unet.set_attn_processor(Zero())
        assert all(isinstance(p, Zero) for p in unet.attn_processors.values())
        assert not torch.equal(unet(sample, 7, labels).sample, before)
        unet.set_attn_processor(originals)
        assert torch.equal(unet(sample, 7, labels).sample, before)


def test_gradient_checkpointing_gives_the_same_gradients():
    unet = convnext_unet().train()
    sample, labels = noise(2, 3, 16, 16), torch.tensor([4, 5])
    gradients = []
    for checkpointing in (False, True):
        unet.zero_grad()
        if checkpointing:
            unet.enable_gradient_checkpointing()
        assert unet.is_gradient_checkpointing is checkpointing
        unet(sample, 7, labels).sample.square().sum().backward()
        gradients.append([p.grad.clone() for p in unet.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_near_single(dtype):
    unet = convnext_unet(class_encoding="bits")
    sample, labels = noise(1, 3, 16, 16), torch.tensor([4])
    with torch.no_grad():
        expected = unet(sample, 500, labels).sample
        output = unet.to(dtype)(sample.to(dtype), 500, labels).sample
    assert output.dtype is dtype
    assert (output.float() - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.slow
def test_torch_compile_without_graph_breaks():
    unet = convnext_unet(mid_attention_type="softmax")
    sample, labels = noise(1, 3, 16, 16), torch.tensor([4])
    with torch.no_grad():
        expected = unet(sample, 500, labels).sample
        compiled = torch.compile(unet, fullgraph=True, backend="eager")(sample, 500, labels).sample
    torch.testing.assert_close(compiled, expected)
