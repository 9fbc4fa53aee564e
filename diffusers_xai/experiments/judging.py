"""What a judge sees in images: the probability of each of the model's attributes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline

from diffusers_xai.labels import attributes_of
from diffusers_xai.pipelines import XAIPipeline


# Images (image, channel, height, width) in [-1, 1], on the CPU -> probabilities of attributes (image, attribute).
Judge = Callable[[torch.Tensor], torch.Tensor]
# Images (image, channel, height, width) in [-1, 1] -> probabilities, or other numbers, (image,) by name.
Seen = Callable[[torch.Tensor], dict[str, torch.Tensor]]


def named_attributes(pipe: XAIPipeline) -> list[str]:
    """The model's attributes, by which it can be judged.

    Raises:
        ValueError: If they have no names.
    """
    attributes = list(pipe.unet.config.get("class_attributes") or ())
    if not attributes:
        raise ValueError("Expected a model whose attributes have names, to be judged by them, got one without.")
    return attributes


def judged_attributes(pipe: XAIPipeline, labels: Sequence[int]) -> list[str]:
    """The attributes that are not the same in all labels, in the model's order.

    Raises:
        ValueError: If the model's attributes have no names.
    """
    attributes = named_attributes(pipe)
    seen = [set(attributes_of(label, attributes)) for label in labels]
    return [name for name in attributes if any(name in a for a in seen) and not all(name in a for a in seen)]


def probabilities(judge: Judge, images: torch.Tensor, pipe: XAIPipeline) -> torch.Tensor:
    """What a judge says of images `(image, channel, height, width)`: `(image, attribute)`, all of the model's.

    Raises:
        ValueError: If the judge returns another shape. NaN is what it does not know.
    """
    attributes = named_attributes(pipe)
    expected = f"Expected a judge of {len(attributes)} attributes ({', '.join(attributes)})"
    answer, shape = judge(images.float().clamp(-1, 1).cpu()), (len(images), len(attributes))
    try:
        told = torch.as_tensor(answer).float().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{expected}: a tensor {shape}, got {type(answer).__name__}.") from error
    if told.shape != shape:
        raise ValueError(f"{expected}: a tensor {shape}, got shape {tuple(told.shape)}.")
    return told


def check_judge(judge: Judge, pipe: XAIPipeline) -> None:
    """Asks a judge about pictures of noise, two of them, so that what it does wrong is seen before any work.

    Raises:
        ValueError: See [`probabilities`].
    """
    probabilities(judge, _noise(pipe), pipe)


def seen_attributes(
    judge: Judge, images: torch.Tensor, pipe: XAIPipeline, names: Sequence[str]
) -> dict[str, torch.Tensor]:
    """The probability of the attributes `names` in images `(image, channel, height, width)`, `(image,)` each."""
    attributes, told = named_attributes(pipe), probabilities(judge, images, pipe)
    return {name: told[:, attributes.index(name)] for name in names}


def checked_names(measure: Seen, pipe: XAIPipeline) -> list[str]:
    """The names of what a function measures, told by pictures of noise, two of them.

    Raises:
        ValueError: If it returns no dict of a number for each image by name.
    """
    return list(numbers_of(measure, _noise(pipe)))


def _noise(pipe: XAIPipeline) -> torch.Tensor:
    return torch.rand(2, *pipe.sample_shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def numbers_of(measure: Seen, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a function measures in images `(image, channel, height, width)`: float64 `(image,)` by name.

    Raises:
        ValueError: If it returns no dict of a finite number for each image by name.
    """
    expected = f"Expected `measure` to return a dict of {len(images)} numbers by name, one for each image"
    told = measure(images.float().clamp(-1, 1))
    if not isinstance(told, Mapping) or not told or not all(isinstance(name, str) and name.strip() for name in told):
        raise ValueError(f"{expected}, got {told if isinstance(told, Mapping) else type(told).__name__}.")
    found = {}
    for name, values in told.items():
        try:
            numbers = torch.as_tensor(values).detach().cpu().double()
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{expected}, got {type(values).__name__} of {name!r}.") from error
        if numbers.shape != (len(images),):
            raise ValueError(f"{expected}, got shape {tuple(numbers.shape)} of {name!r}.")
        if not numbers.isfinite().all():
            raise ValueError(f"{expected}, got {numbers[~numbers.isfinite()][0]} of {name!r}.")
        found[name] = numbers
    return found


def told_by(judge: Judge | Seen, pipe: DiffusionPipeline) -> Seen:
    """What a judge tells by name: of labels the model's attributes, of any other pipeline whatever it names."""
    either: Any = judge
    if not isinstance(pipe, XAIPipeline):
        return either
    return lambda images: seen_attributes(either, images, pipe, named_attributes(pipe))


def judged(judge: Judge, final: torch.Tensor, pipe: XAIPipeline, names: Sequence[str]) -> torch.Tensor:
    """The probability of the attributes `names` in runs' images `(run, seed, …)`: `(seed, run, attribute)`."""
    attributes = named_attributes(pipe)
    told = torch.stack([probabilities(judge, images, pipe) for images in final], dim=1)
    return told[..., [attributes.index(name) for name in names]]
