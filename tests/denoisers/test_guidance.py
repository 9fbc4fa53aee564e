import pytest
import torch

from diffusers_xai.denoisers.guidance import combination


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
