"""Samples faces from a U-Net, optionally with labels and classifier-free guidance, in plain diffusers.

The file stands alone: a repository on the Hub carries it as `pipeline.py`, for
`DiffusionPipeline.from_pretrained(repo, trust_remote_code=True)`. With the package `diffusers_xai`, use its own
`XAIPipeline`, which returns the same pixels and can record how they form.
"""

import inspect

import torch
from diffusers import DDPMScheduler, DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor


class XAIPipeline(DiffusionPipeline):
    r"""Pipeline for image generation with a pixel-space U-Net.

    Args:
        unet ([`~diffusers.ModelMixin`]): The denoiser of samples in [-1, 1].
        scheduler ([`~diffusers.SchedulerMixin`]): Any scheduler of diffusers.
    """

    model_cpu_offload_seq = "unet"

    def __init__(self, unet, scheduler):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        class_labels=None,
        batch_size=None,
        num_inference_steps=None,
        generator=None,
        guidance_scale=1.0,
        eta=0.0,
        output_type="pil",
        return_dict=True,
    ):
        r"""Samples images.

        Args:
            class_labels (`int`, `dict[str, bool]`, a sequence of them, an array or a tensor, *optional*):
                One label per image, as integers, as attributes by name such as `{"Smiling": True}`, as one-hot rows or
                as rows of the attributes' bits. Required by a conditional model.
            batch_size (`int`, *optional*): Number of images; the number of labels, or 1, if `None`.
            num_inference_steps (`int`, *optional*): Number of denoising steps; if `None`, all of the training's
                (usually 1000) with a `DDPMScheduler`, 50 with any other.
            generator (`torch.Generator` or a list of them, one per image, *optional*): Source of all noise.
            guidance_scale (`float`, *optional*, defaults to 1.0): Classifier-free guidance; 1 is none.
            eta (`float`, *optional*, defaults to 0.0): η of DDIM; other schedulers ignore it.
            output_type (`str`, *optional*, defaults to `"pil"`):
                `"pil"`, `"np"` (batch, height, width, channel) or `"pt"` (batch, channel, height, width) in [0, 1].
            return_dict (`bool`, *optional*, defaults to `True`): Return an output object instead of a tuple.

        Returns:
            [`~diffusers.ImagePipelineOutput`] or `tuple`: the images.

        Raises:
            ValueError: for labels that do not fit the model.
        """
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"Expected `output_type` 'pil', 'np' or 'pt', got {output_type!r}.")
        labels = self._encode(class_labels)
        batch_size = batch_size or (1 if labels is None else len(labels))
        if labels is not None and len(labels) not in (1, batch_size):
            raise ValueError(f"Expected 1 or {batch_size} `class_labels` for `batch_size`, got {len(labels)}.")
        guided, device, config = guidance_scale != 1.0, self._execution_device, self.unet.config
        if guided and (labels is None or config.get("null_class_label") is None):
            raise ValueError(f"Expected `guidance_scale` 1.0 for a model without a null label, got {guidance_scale}.")
        if labels is not None:
            labels = labels * batch_size if len(labels) == 1 else labels
            labels = torch.tensor(([config.null_class_label] * batch_size if guided else []) + labels, device=device)

        if num_inference_steps is None:
            train_timesteps = self.scheduler.config.get("num_train_timesteps", 1000)
            num_inference_steps = (
                train_timesteps if isinstance(self.scheduler, DDPMScheduler) else min(50, train_timesteps)
            )
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        size = config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        shape = (batch_size, config.in_channels, height, width)
        sample = randn_tensor(shape, generator=generator, device=device, dtype=self.unet.dtype)
        sample = sample * getattr(self.scheduler, "init_noise_sigma", 1.0)
        accepted = inspect.signature(self.scheduler.step).parameters
        step_kwargs = {k: v for k, v in {"generator": generator, "eta": eta}.items() if k in accepted}
        for t in self.progress_bar(self.scheduler.timesteps):
            model_input = torch.cat([sample, sample]) if guided else sample
            if hasattr(self.scheduler, "scale_model_input"):
                model_input = self.scheduler.scale_model_input(model_input, t)
            model_output = self.unet(model_input, t, class_labels=labels).sample
            if guided:
                uncond, cond = model_output.chunk(2)
                model_output = uncond + guidance_scale * (cond - uncond)
            sample = self.scheduler.step(model_output, t, sample, **step_kwargs).prev_sample

        images = (sample / 2 + 0.5).clamp(0, 1)
        if output_type != "pt":
            images = images.cpu().permute(0, 2, 3, 1).float().numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _encode(self, class_labels):
        """The labels as a list of integers, or `None` for an unconditional model."""
        config = self.unet.config
        count, null = config.get("num_class_embeds"), config.get("null_class_label")
        attributes = config.get("class_attributes")
        if count is None:
            if class_labels is not None:
                raise ValueError(f"Expected `class_labels` None for an unconditional model, got {class_labels!r}.")
            return None
        if class_labels is None:
            raise ValueError(f"Expected `class_labels` in 0..{count - 1}, got None.")
        if hasattr(class_labels, "tolist"):  # an array or a tensor
            class_labels = class_labels.tolist()
        labels = []
        for label in class_labels if isinstance(class_labels, list | tuple | range) else [class_labels]:
            label = label.tolist() if hasattr(label, "tolist") else label
            if isinstance(label, list | tuple):
                if len(label) == count and sorted(label) == [0] * (count - 1) + [1]:
                    label = list(label).index(1)
                elif attributes and len(label) == len(attributes) and set(label) <= {0, 1}:
                    label = dict(zip(attributes, label, strict=True))
                else:
                    raise ValueError(f"Expected integers, one-hot rows or rows of the label's bits, got {label}.")
            if isinstance(label, dict):
                unknown = sorted(set(label) - set(attributes or ()))
                if unknown or not attributes:
                    raise ValueError(f"Expected attributes from {list(attributes or ())}, got {unknown or label}.")
                if any(value not in (False, True) for value in label.values()):
                    raise ValueError(f"Expected attributes as True or False, got {label}.")
                label = sum(bool(label.get(name)) << i for i, name in enumerate(reversed(attributes)))
            if isinstance(label, bool) or not isinstance(label, int):
                raise TypeError(f"Expected a label as an integer or a dict of attributes, got {label!r}.")
            if label != null and not 0 <= label < count:
                raise ValueError(f"Expected a label in 0..{count - 1} or the null label {null}, got {label}.")
            labels.append(label)
        if not labels:
            raise ValueError("Expected at least one label, got none.")
        return labels
