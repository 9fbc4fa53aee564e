"""What a run shows, in words."""

from diffusers_xai.app.models import Model
from diffusers_xai.app.settings import OWN_SCHEDULER, Settings


def caption(settings: Settings, model: Model, records: bool = True, seeds: int = 1) -> str:
    """All that was chosen: model, label, seed, steps, and what was changed.

    Args:
        settings (`Settings`): What was chosen.
        model (`Model`): Of which model.
        records (`bool`, defaults to `True`): Whether it matters how often it was recorded.
        seeds (`int`, defaults to 1): How many there are, from that of the settings on.
    """
    seed = f"seed {settings.seed}" if seeds == 1 else f"seeds {settings.seed} to {settings.seed + seeds - 1}"
    words = [f"**{model.words_of(settings.label)}**, {seed}, {_count(settings.steps, 'step')}"]
    if records:
        words.append(f"recorded every {settings.every}" if settings.every > 1 else "every step recorded")
    if settings.scheduler != OWN_SCHEDULER:
        words.append(f"scheduler {settings.scheduler}")
    if settings.guidance != 1:
        words.append(f"guidance {settings.guidance:g}")
    mask = settings.mask_array()
    if mask is not None:
        words.append(f"region of {_count(mask.sum(), 'pixel')}")
    if settings.ablations:
        names = [f"{model.layers[layer]}:{channel}" for layer, channel in settings.ablations]
        words.append(f"masked {', '.join(names)}")
    if settings.switch_at is not None:
        words.append(f"label switched to {model.words_of(settings.switch_to)} at step {settings.switch_at}")
    return "; ".join([*words, f"model {model.name}"])


def _count(number: int, name: str) -> str:
    return f"{number} {name}" if number == 1 else f"{number} {name}s"
