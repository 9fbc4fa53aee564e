import pytest
import torch

from diffusers_xai.denoisers.guidance import combination, mixture


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1.5, 2.0, 7.5])
def test_the_weights_of_guidance_are_found_in_every_precision(dtype, scale):
    generator = torch.Generator().manual_seed(0)
    uncond = torch.randn(2, 3, 16, 16, generator=generator)
    cond = (uncond + 0.3 * torch.randn(uncond.shape, generator=generator)).to(dtype)
    uncond = uncond.to(dtype)
    weights = combination([uncond, cond], uncond + scale * (cond - uncond))
    assert weights.tolist() == pytest.approx([1 - scale, scale], abs=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_no_weighted_sum_is_not_taken_for_one(dtype):
    generator = torch.Generator().manual_seed(0)
    uncond, cond = (torch.randn(2, 3, 16, 16, generator=generator).to(dtype) for _ in range(2))
    guided = uncond + 2 * (cond - uncond)
    rescaled = guided * torch.tensor([1.0, 0.95], dtype=dtype).reshape(2, 1, 1, 1)  # each image by its own factor
    assert combination([uncond, cond], rescaled) is None


def branches(shape=(1, 4, 8, 8)):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(2)]


def test_a_sum_that_is_scaled_by_what_the_outputs_are_has_no_constant_weights():
    uncond, cond = branches()
    guided = uncond + 3 * (cond - uncond)
    assert combination([uncond, cond], guided * cond.std() / guided.std()) is None


@pytest.mark.parametrize("share", [0.7, 1.0])
def test_rescaled_guidance_is_repeated_with_its_factor(share):
    uncond, cond = branches()

    def rescaled(cond, uncond):  # Lin et al. 2023, of one image
        guided = uncond + 3 * (cond - uncond)
        return share * guided * cond.std() / guided.std() + (1 - share) * guided

    variables = {"guidance_scale": 3.0, "guidance_rescale": share}
    repeat = mixture([uncond, cond], rescaled(cond, uncond), ("uncond", "cond"), variables)
    torch.testing.assert_close(repeat([uncond + 1, cond * 2]), rescaled(cond * 2, uncond + 1))


def test_limited_guidance_is_repeated_with_its_limit():
    uncond, cond = branches()

    def limited(cond, uncond):  # of one image, counted from the conditional branch
        guided = cond + 3 * (cond - uncond)
        return -guided * min(1.0, 0.9 * float(cond.norm() / guided.norm()))

    variables = {"guidance_scale": 3.0, "cfg_normalization": 0.9}
    repeat = mixture([cond, uncond], limited(cond, uncond), ("cond", "uncond"), variables)
    torch.testing.assert_close(repeat([uncond + 1, cond * 2]), limited(uncond + 1, cond * 2))


def test_every_frame_or_channel_may_have_a_guidance_of_its_own():
    uncond, cond = branches((1, 3, 4, 8, 8))
    scales = torch.tensor([1.0, 2.0, 3.0]).reshape(1, 3, 1, 1, 1)
    repeat = mixture([uncond, cond], uncond + scales * (cond - uncond), ("uncond", "cond"), {})
    torch.testing.assert_close(repeat([cond, uncond * 2]), cond + scales * (uncond * 2 - cond))


def test_what_is_unlike_any_known_guidance_is_not_repeated():
    uncond, cond = branches()
    assert mixture([uncond, cond], torch.tanh(cond), ("uncond", "cond"), {"guidance_scale": 3.0}) is None
