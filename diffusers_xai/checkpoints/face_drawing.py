"""Draws faces from parameters, which are the exact truth of the picture: labels, caption, and masks of its parts.

A face is drawn back to front as polygons into a map of parts, eight times finer than the picture. Each fine pixel
belongs to one part, so a pixel of the picture is the mean of its parts' colours, weighted by the share each covers.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw


ATTRIBUTES = ("Bangs", "Male", "Smiling", "Wearing_Lipstick")
PARTS = (
    "background", "ears", "hair", "neck", "clothes", "face", "beard", "nose", "lips", "mouth", "teeth", "eyes",
    "irises", "pupils", "bangs", "brows", "glasses",
)  # fmt: skip
HAIR_COLORS = {
    "black": (34, 28, 38),
    "brown": (104, 60, 32),
    "ginger": (206, 98, 34),
    "blond": (240, 204, 92),
    "grey": (156, 160, 170),
    "blue": (52, 92, 190),
}
BACKGROUND_COLORS = {
    "blue": (126, 178, 226),
    "green": (146, 200, 134),
    "yellow": (240, 216, 124),
    "orange": (240, 172, 104),
    "purple": (176, 150, 214),
    "grey": (176, 178, 184),
}
_SKIN = np.array([(252, 216, 180), (240, 190, 148), (206, 146, 104), (164, 106, 70), (124, 78, 52)], dtype=float)
_LIPSTICKS = ((206, 16, 46), (222, 28, 112), (176, 8, 76))
_CLOTHES = ((62, 84, 130), (70, 120, 104), (122, 88, 140), (90, 92, 100), (196, 150, 70))
_FRAMES = ((26, 26, 34), (16, 92, 100), (60, 40, 110))
_NATURAL_LIPS = (0.82, 0.64, 0.64)  # of the skin's colour
_LEAST_CONTRAST = 80.0  # of the hair to skin and natural lips, in RGB: below it, bangs and beard would hardly show
OVERSAMPLING = 8


@dataclass(frozen=True)
class Face:
    """What is drawn. Lengths are in halves of the picture's side: it reaches from -1 to 1, downwards.

    Args:
        bangs, male, smiling, wearing_lipstick (`bool`): The labels. A man has a beard, short hair and thick brows.
        glasses (`bool`): Nuisance, as all that follows.
        hair_color, background_color (`str`): Keys of `HAIR_COLORS` and `BACKGROUND_COLORS`.
        colors (`dict[str, tuple[int, int, int]]`): RGB of every part.
        shift (`tuple[float, float]`), scale (`float`), tilt (`float`, radians), turn (`float`): Pose; `turn` is how
            far the features stand to the side of the face's middle.
        width, height (`float`): Half axes of the face.
        jaw (`float`): 2 is an ellipse, more is squarer.
        eye_distance, eye_height, gaze (`float`): Of the eyes, and where they look.
        mouth_width (`float`): Factor.
        hair_volume (`float`), hair_length (`float`), hair_waves (`int`), parting (`float`), fringe (`float`): Shape of
            the hair: its thickness, where long hair ends, how many waves, where it parts, how low bangs hang.
        beard_length (`float`): Below the chin.
    """

    bangs: bool
    male: bool
    smiling: bool
    wearing_lipstick: bool
    glasses: bool
    hair_color: str
    background_color: str
    colors: dict[str, tuple[int, ...]]
    shift: tuple[float, float]
    scale: float
    tilt: float
    turn: float
    width: float
    height: float
    jaw: float
    eye_distance: float
    eye_height: float
    gaze: float
    mouth_width: float
    hair_volume: float
    hair_length: float
    hair_waves: int
    parting: float
    fringe: float
    beard_length: float

    @property
    def labels(self) -> dict[str, bool]:
        """The attributes by the names of CelebA."""
        return dict(zip(ATTRIBUTES, (self.bangs, self.male, self.smiling, self.wearing_lipstick), strict=True))


@dataclass(frozen=True)
class Drawing:
    """A drawn face.

    Args:
        image (`np.ndarray` of shape `(height, width, 3)`): uint8.
        coverage (`np.ndarray` of shape `(part, height, width)`): The share of each pixel that each of `PARTS` covers,
            float32; sums to 1 over the parts. A part's mask is where it is above 0 (touched) or above 0.5 (mostly).
    """

    image: np.ndarray
    coverage: np.ndarray


def random_face(seed: int, **fixed: Any) -> Face:
    """The face of this seed. Labels are fair coins, independent of each other and of everything else.

    Args:
        seed (`int`): The same number is the same face.
        **fixed (`bool`): Fields to set otherwise, such as `smiling=True`; all else stays, which makes exact
            counterfactual pairs.
    """
    rng = np.random.default_rng(seed)
    bangs, male, smiling, lipstick = (bool(b) for b in rng.random(4) < 0.5)
    glasses = bool(rng.random() < 0.4)
    chosen = {"wearing_lipstick": lipstick, **fixed}
    hair_name = str(rng.choice(list(HAIR_COLORS)))
    background_name = str(rng.choice(list(BACKGROUND_COLORS)))
    hair = _jitter(HAIR_COLORS[hair_name], rng)
    skin = _skin(rng)
    while min(np.linalg.norm(skin - hair), np.linalg.norm(skin * _NATURAL_LIPS - hair)) < _LEAST_CONTRAST:
        skin = _skin(rng)
    rouge = _jitter(_LIPSTICKS[rng.integers(len(_LIPSTICKS))], rng)
    colors = {
        "background": _jitter(BACKGROUND_COLORS[background_name], rng),
        "ears": 0.92 * skin,
        "hair": hair,
        "neck": 0.84 * skin,
        "clothes": _jitter(_CLOTHES[rng.integers(len(_CLOTHES))], rng),
        "face": skin,
        "beard": 0.94 * hair,
        "nose": skin * (0.84, 0.78, 0.76),
        "lips": rouge if chosen["wearing_lipstick"] else skin * _NATURAL_LIPS,
        "mouth": np.array((96, 26, 32)),
        "teeth": np.array((252, 252, 250)),
        "eyes": np.array((252, 252, 250)),
        "irises": _jitter(((70, 110, 160), (84, 128, 78), (110, 72, 40))[rng.integers(3)], rng),
        "pupils": np.array((16, 14, 18)),
        "bangs": hair,
        "brows": 0.72 * hair,
        "glasses": _jitter(_FRAMES[rng.integers(len(_FRAMES))], rng),
    }
    uniform = rng.uniform
    face = Face(
        bangs=bangs, male=male, smiling=smiling, wearing_lipstick=lipstick, glasses=glasses,
        hair_color=hair_name, background_color=background_name,
        colors={name: tuple(int(c) for c in np.clip(np.round(colors[name]), 0, 255)) for name in PARTS},
        shift=(uniform(-0.07, 0.07), uniform(-0.05, 0.05)), scale=uniform(0.95, 1.04), tilt=uniform(-0.12, 0.12),
        turn=uniform(-0.07, 0.07), width=uniform(0.52, 0.6), height=uniform(0.66, 0.72), jaw=uniform(2.0, 2.6),
        eye_distance=uniform(0.22, 0.26), eye_height=uniform(0.1, 0.125), gaze=uniform(-0.035, 0.035),
        mouth_width=uniform(0.92, 1.08), hair_volume=uniform(0.13, 0.2), hair_length=uniform(0.62, 0.98),
        hair_waves=int(rng.integers(0, 3)) * 7, parting=uniform(-0.3, 0.3), fringe=uniform(-0.2, -0.16),
        beard_length=uniform(0.06, 0.14),
    )  # fmt: skip
    return dataclasses.replace(face, **fixed)


def draw_face(face: Face, size: int = 32) -> Drawing:
    """Draws `face` as a picture of `size` times `size` pixels.

    Raises:
        ValueError: If `size` is below 8.
    """
    if size < 8:
        raise ValueError(f"expected a size of at least 8 pixels, got {size}")
    fine = size * OVERSAMPLING
    canvas = Image.new("L", (fine, fine), PARTS.index("background"))
    pen = ImageDraw.Draw(canvas)
    cos, sin = np.cos(face.tilt) * face.scale, np.sin(face.tilt) * face.scale
    for part, points in _shapes(face):
        x, y = points[:, 0] * cos - points[:, 1] * sin, points[:, 0] * sin + points[:, 1] * cos
        x, y = x + face.shift[0], y + face.shift[1]
        pixels = np.stack([x + 1, y + 1], axis=1) * fine / 2 - 0.5
        pen.polygon([tuple(p) for p in pixels.tolist()], fill=PARTS.index(part))
    cells = np.asarray(canvas).reshape(size, OVERSAMPLING, size, OVERSAMPLING)
    coverage = np.stack([(cells == i).mean(axis=(1, 3), dtype=np.float32) for i in range(len(PARTS))])
    colors = np.array([face.colors[name] for name in PARTS], dtype=np.float32)
    image = np.einsum("phw,pc->hwc", coverage, colors)
    return Drawing(np.round(image).astype(np.uint8), coverage)


def caption(face: Face, *, hair: bool = True, background: bool = True) -> str:
    """The face in words, such as "a smiling man with bangs, glasses and blond hair, blue background".

    What is there is named: no word of glasses means none. The colours may be left out.
    """
    things = ["bangs"] * face.bangs + ["lipstick"] * face.wearing_lipstick + ["glasses"] * face.glasses
    things += [f"{face.hair_color} hair"] * hair
    listed = " and ".join([", ".join(things[:-1])] * (len(things) > 1) + things[-1:])
    who = f"a {'smiling ' if face.smiling else ''}{'man' if face.male else 'woman'}"
    where = f", {face.background_color} background" if background else ""
    return who + (f" with {listed}" if things else "") + where


def _shapes(face: Face) -> Iterator[tuple[str, np.ndarray]]:
    """The polygons of a face, back to front: (part, points of shape (point, 2)), upright and in the middle."""
    width, height, middle, dx = face.width, face.height, 0.1, face.turn
    if face.male:
        for side in (-1, 1):
            yield "ears", _ellipse((side * width, 0.1), 0.11, 0.15)
    yield from _hair_behind(face, middle)
    yield "neck", np.array([(-0.2, 0.5), (0.2, 0.5), (0.23, 1.3), (-0.23, 1.3)])
    yield "clothes", _ellipse((0, 1.32), 0.84, 0.42)
    outline = _ellipse((0, middle), width, height, face.jaw)
    yield "face", outline
    if face.male:
        yield "beard", _beard(face, outline, dx)
    yield "nose", _ellipse((1.3 * dx, 0.25), 0.075, 0.055)
    yield from _mouth(face, dx)
    for side in (-1, 1):
        x = dx + side * face.eye_distance
        yield "eyes", _ellipse((x, 0.04), 0.14, face.eye_height)
        yield "irises", _ellipse((x + face.gaze, 0.045), 0.085, 0.09)
        yield "pupils", _ellipse((x + face.gaze, 0.045), 0.042, 0.045)
    yield "hair", _hairline(face, middle)
    if face.bangs:
        yield "bangs", _bangs(face, middle)
    for side in (-1, 1):
        x, thick = dx + side * face.eye_distance, 0.075 if face.male else 0.04
        xs = np.linspace(-0.15, 0.15, 9)
        top = -0.125 - thick / 2 + 1.2 * xs**2
        yield "brows", np.concatenate([np.stack([x + xs, top], 1), np.stack([x + xs, top + thick], 1)[::-1]])
    if face.glasses:
        yield from _glasses(face, dx)


def _ellipse(center: tuple[float, float], rx: float, ry: float, power: float = 2.0, points: int = 48) -> np.ndarray:
    """|x / rx|^power + |y / ry|^power = 1, the power holding below the middle; above it is 2."""
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    x, y = np.cos(angle), np.sin(angle)
    stretch = np.where(y > 0, (np.abs(x) ** power + np.abs(y) ** power) ** (-1 / power), 1.0)
    return np.stack([center[0] + rx * x * stretch, center[1] + ry * y * stretch], axis=1)


def _hair_behind(face: Face, middle: float) -> Iterator[tuple[str, np.ndarray]]:
    crown = _ellipse((0, middle - 0.06), face.width + face.hair_volume, face.height + face.hair_volume, points=96)
    top = crown[crown[:, 1] < middle - 0.06]
    if face.male:
        half = face.width * 0.9
        yield "hair", np.concatenate([top, [(half, 0.2), (-half, 0.2)]])
        return
    y = np.linspace(middle - 0.06, face.hair_length, 60)
    x = top[-1, 0] + 0.06 * (y - y[0]) + 0.025 * np.sin(2 * face.hair_waves * (y - y[0]))
    right, left = np.stack([x, y], 1), np.stack([-x, y], 1)
    yield "hair", np.concatenate([top, right, left[::-1]])
    for side in (-1, 1):  # round ends
        yield "hair", _ellipse((side * (x[-1] - 0.2), face.hair_length), 0.2, 0.1)


def _hairline(face: Face, middle: float) -> np.ndarray:
    """The hair in front of the head's top, parted at one side."""
    crown = _ellipse((0, middle - 0.06), face.width + face.hair_volume, face.height + face.hair_volume, points=96)
    crown = crown[crown[:, 1] < -0.12]
    crown = crown[np.argsort(crown[:, 0])]
    x = np.linspace(crown[0, 0], crown[-1, 0], 41)
    reach = (x - face.parting) / np.where(x < face.parting, crown[0, 0] - face.parting, crown[-1, 0] - face.parting)
    y = -0.47 + 0.36 * reach**3
    return np.concatenate([crown, np.stack([x, y], 1)[::-1]])


def _bangs(face: Face, middle: float) -> np.ndarray:
    """Hair over the whole forehead, in locks."""
    half = face.width * 0.96
    x = np.linspace(-half, half, 49)
    top = middle - face.height * np.sqrt(np.clip(1 - (x / (face.width * 1.05)) ** 2, 0, 1))
    locks = 0.035 * np.abs(np.sin(3.5 * np.pi * (x - face.parting / 3) / half))
    bottom = face.fringe - locks + 0.1 * (np.abs(x) / half) ** 4
    return np.concatenate([np.stack([x, np.minimum(top, bottom)], 1), np.stack([x, bottom], 1)[::-1]])


def _beard(face: Face, outline: np.ndarray, dx: float) -> np.ndarray:
    """From ear to ear around the chin, with a moustache: all of the lower face but the lips."""
    below = outline[outline[:, 1] > 0.16]
    below = below[
        np.argsort(-np.arctan2(below[:, 1] - 0.1, below[:, 0]))
    ]  # from the left ear over the chin to the right
    grown = below * (1.02, 1.0)
    grown[:, 1] += face.beard_length * np.clip((below[:, 1] - 0.3) / 0.5, 0, 1)
    inner = face.width * 0.78
    x = np.array([inner, inner * 0.86, 0.24, 0.12, 0.0, -0.12, -0.24, -inner * 0.86, -inner])
    y = np.array([0.2, 0.38, 0.34, 0.3, 0.33, 0.3, 0.34, 0.38, 0.2])
    return np.concatenate([grown, np.stack([x + dx * (np.abs(x) < 0.4), y], 1)])


def _mouth(face: Face, dx: float) -> Iterator[tuple[str, np.ndarray]]:
    wide = face.mouth_width
    if face.smiling:
        yield "lips", _crescent(dx, 0.36 * wide, 0.375, 0.42, 0.685)
        yield "mouth", _crescent(dx, 0.285 * wide, 0.425, 0.46, 0.61)
        yield "teeth", _crescent(dx, 0.27 * wide, 0.435, 0.46, 0.585)
        return
    x = np.linspace(-1, 1, 25)
    half = 0.25 * wide
    top = 0.5 - 0.085 * (1 - np.abs(x) ** 2.2) * (1 - 0.25 * np.exp(-((x / 0.16) ** 2)))
    bottom = 0.5 + 0.105 * (1 - np.abs(x) ** 2.4)
    xs = dx + half * x
    yield "lips", np.concatenate([np.stack([xs, top], 1), np.stack([xs, bottom], 1)[::-1]])
    line = 0.5 - 0.008 * np.cos(3 * np.pi * x)
    yield "mouth", np.concatenate([np.stack([xs, line - 0.012], 1), np.stack([xs, line + 0.012], 1)[::-1]])


def _crescent(dx: float, half: float, corner: float, top: float, bottom: float) -> np.ndarray:
    """A smile: corners at the height `corner`, its middle between `top` and `bottom`."""
    x = np.linspace(-1, 1, 33)
    upper, lower = top + (corner - top) * x**2, bottom + (corner - bottom) * np.abs(x) ** 2.6
    xs = dx + half * x
    return np.concatenate([np.stack([xs, upper], 1), np.stack([xs, lower], 1)[::-1]])


def _glasses(face: Face, dx: float) -> Iterator[tuple[str, np.ndarray]]:
    """Two rims, each as a ring of quadrilaterals, the bridge and the temples."""
    outer, inner = 0.215, 0.16
    for side in (-1, 1):
        center = (dx + side * (face.eye_distance + 0.005), 0.05)
        ring = [_ellipse(center, r * 1.02, r, points=32) for r in (outer, inner)]
        for i in range(32):
            yield "glasses", np.stack([ring[0][i - 1], ring[0][i], ring[1][i], ring[1][i - 1]])
        x, end = center[0] + side * (outer - 0.01), side * face.width * 0.98
        if side * (end - x) > 0:
            yield "glasses", np.array([(x, 0.01), (end, -0.02), (end, 0.04), (x, 0.06)])
    half = max(face.eye_distance + 0.005 - outer, 0) + 0.03
    yield "glasses", np.array([(dx - half, 0.0), (dx + half, 0.0), (dx + half, 0.055), (dx - half, 0.055)])


def _skin(rng: np.random.Generator) -> np.ndarray:
    """A colour on the line through `_SKIN`."""
    at = rng.uniform(0, len(_SKIN) - 1)
    low = min(int(at), len(_SKIN) - 2)
    return _SKIN[low] + (at - low) * (_SKIN[low + 1] - _SKIN[low])


def _jitter(color: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
    return np.array(color, dtype=float) + rng.uniform(-8, 8, 3)
