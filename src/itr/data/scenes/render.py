"""Draw synthetic scenes: objects as coloured, textured shapes, drawn at three times the size and scaled down."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from itr.data.scenes.world import Scene, SceneObject

Colour = tuple[int, int, int]

OVERSAMPLING = 3
RADIUS = {"small": 0.095, "large": 0.145}  # fraction of the image side; a cell of the grid is 0.333 wide

_COLOURS: dict[str, Colour] = {
    "red": (220, 30, 35),
    "green": (20, 150, 50),
    "blue": (35, 70, 220),
    "yellow": (250, 225, 40),
    "purple": (145, 45, 180),
    "orange": (250, 135, 20),
    "white": (250, 250, 250),
    "black": (20, 20, 20),
}
# Pale and dull, to contrast with the objects; each background is a pattern of a lighter and a darker shade.
_GROUNDS: dict[str, tuple[Colour, Colour]] = {
    "grass": ((150, 185, 135), (128, 166, 112)),
    "sand": ((226, 208, 165), (212, 192, 145)),
    "water": ((150, 190, 205), (125, 170, 192)),
    "stone": ((168, 168, 172), (146, 146, 150)),
    "wood": ((176, 140, 112), (154, 118, 92)),
}


def render(scene: Scene, image_size: int, clutter: float = 0.0, seed: int = 0) -> Image.Image:
    """The image of a scene.

    Args:
        scene: what to draw.
        image_size: side length of the square image in pixels.
        clutter: strength of distracting specks and pixel noise, from 0 (none) to 1.
        seed: random seed of the specks and the noise; it does not affect the objects.

    Returns:
        RGB image [image_size x image_size].
    """
    side = image_size * OVERSAMPLING
    canvas = _ground(scene.background, side).copy()
    rng = np.random.default_rng(seed)
    if clutter > 0:
        _specks(canvas, round(40 * clutter), rng)
    for item in scene.objects:
        colours, mask = _sprite(item.shape, item.colour, item.size, item.texture, side)
        half = mask.width // 2
        canvas.paste(colours, (round(item.x * side) - half, round(item.y * side) - half), mask)
    image = canvas.reduce(OVERSAMPLING)
    if clutter > 0:
        noise = rng.standard_normal((image_size, image_size, 3), dtype=np.float32) * (24 * clutter)
        image = Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))
    return image


def extent(item: SceneObject) -> float:
    """Half the side of the bounding square of an object and its outline, as a fraction of the image side."""
    return RADIUS[item.size] * 1.25


def _specks(canvas: Image.Image, num: int, rng: np.random.Generator) -> None:
    """Draw small grey dots, much smaller than a small object, before the objects."""
    draw = ImageDraw.Draw(canvas)
    side = canvas.width
    radius = 0.018 * side
    for x, y, shade in rng.random((num, 3)):
        grey = int(60 + 140 * shade)
        box = (x * side - radius, y * side - radius, x * side + radius, y * side + radius)
        draw.ellipse(box, fill=(grey, grey, grey))


@lru_cache(maxsize=64)
def _ground(name: str, side: int) -> Image.Image:
    """The background: one colour with a faint pattern of a second shade, which differs between backgrounds."""
    light, dark = _GROUNDS[name]
    image = Image.new("RGB", (side, side), light)
    draw = ImageDraw.Draw(image)
    step, width = side // 8, max(1, side // 48)
    for start in range(step // 2, side, step):
        if name == "water":
            draw.line([(0, start), (side, start)], fill=dark, width=width)
        elif name == "wood":
            draw.line([(start, 0), (start, side)], fill=dark, width=width)
        elif name == "stone":
            draw.line([(0, start), (side, start)], fill=dark, width=width)
            draw.line([(start, 0), (start, side)], fill=dark, width=width)
        else:
            for across in range(step // 2, side, step):
                height = 3 * width if name == "grass" else width
                draw.rectangle((across, start, across + width, start + height), fill=dark)
    return image


@lru_cache(maxsize=4096)
def _sprite(shape: str, colour: str, size: str, texture: str, side: int) -> tuple[Image.Image, Image.Image]:
    """One object on a square tile: its colours, and the mask to paste them through."""
    radius = RADIUS[size] * side
    tile = 2 * math.ceil(1.2 * radius)
    rim = max(3, OVERSAMPLING * round(side / OVERSAMPLING / 64)) | 1  # an odd width in oversampled pixels
    inner = _silhouette(shape, tile, radius)
    mask = inner.filter(ImageFilter.MaxFilter(rim))
    fill = _COLOURS[colour]
    bright = sum(fill) > 380
    colours = Image.new("RGB", (tile, tile), (25, 25, 25) if bright else (245, 245, 245))
    colours.paste(fill, (0, 0, tile, tile), inner)
    shade = (0, 0, 0) if bright else (255, 255, 255)
    second: Colour = tuple(round(0.45 * own + 0.55 * other) for own, other in zip(fill, shade, strict=True))  # type: ignore[assignment]
    core = inner.filter(
        ImageFilter.MinFilter(rim)
    )  # the edge keeps the main colour, so that the shape stays recognizable
    colours.paste(second, (0, 0, tile, tile), ImageChops.multiply(core, _texture(texture, tile, radius)))
    return colours, mask


def _texture(name: str, tile: int, radius: float) -> Image.Image:
    """Mask of the parts of a tile that have the second shade."""
    mask = Image.new("L", (tile, tile), 0)
    draw = ImageDraw.Draw(mask)
    period = max(6, round(0.62 * radius))
    middle = tile // 2
    offsets = [middle + period * k for k in range(-tile // period, tile // period + 1)]
    if name == "striped":
        for x in offsets:
            draw.rectangle((x - period // 4, 0, x + period // 4 - 1, tile), fill=255)
    elif name == "dotted":
        dot = 0.3 * period
        for x in offsets:
            for y in offsets:
                draw.ellipse((x - dot, y - dot, x + dot, y + dot), fill=255)
    return mask


def _silhouette(shape: str, tile: int, radius: float) -> Image.Image:
    """The shape in white on black; areas are roughly equal, so that only `size` determines how large it looks."""
    mask = Image.new("L", (tile, tile), 0)
    draw = ImageDraw.Draw(mask)
    c = tile / 2
    if shape in ("circle", "ring"):
        draw.ellipse((c - radius, c - radius, c + radius, c + radius), fill=255)
        if shape == "ring":
            hole = 0.5 * radius
            draw.ellipse((c - hole, c - hole, c + hole, c + hole), fill=0)
    elif shape == "square":
        half = 0.88 * radius
        draw.rectangle((c - half, c - half, c + half, c + half), fill=255)
    elif shape == "cross":
        half, arm = radius, 0.36 * radius
        draw.rectangle((c - half, c - arm, c + half, c + arm), fill=255)
        draw.rectangle((c - arm, c - half, c + arm, c + half), fill=255)
    else:
        draw.polygon(_corners(shape, c, 1.1 * radius), fill=255)
    return mask


def _corners(shape: str, centre: float, radius: float) -> list[tuple[float, float]]:
    """Corners of a triangle or of a five-pointed star, starting at the top."""
    radii = [radius] if shape == "triangle" else [radius, 0.45 * radius]
    num = 3 if shape == "triangle" else 10
    angles = [2 * math.pi * k / num for k in range(num)]
    return [
        (centre + radii[k % len(radii)] * math.sin(angle), centre - radii[k % len(radii)] * math.cos(angle))
        for k, angle in enumerate(angles)
    ]
