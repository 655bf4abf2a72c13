"""Draw the images of generated posts: a face, weather or a heart that shows a sentiment."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

Color = tuple[int, int, int]

OVERSAMPLING = 2  # images are drawn larger and scaled down, which smooths the edges


class _Canvas:
    """A drawing surface with coordinates from 0 to 1 and its own random generator."""

    def __init__(self, image: Any, random: np.random.Generator) -> None:
        self.pen = ImageDraw.Draw(image)
        self.side = image.size[0]
        self.random = random

    def uniform(self, low: float, high: float) -> float:
        return float(self.random.uniform(low, high))

    def color(self, low: int, high: int) -> Color:
        red, green, blue = (int(value) for value in self.random.integers(low, high, 3))
        return red, green, blue

    def disc(self, x: float, y: float, radius: float, color: Color) -> None:
        box = [(x - radius) * self.side, (y - radius) * self.side]
        box += [(x + radius) * self.side, (y + radius) * self.side]
        self.pen.ellipse(box, fill=color)

    def line(self, points: list[tuple[float, float]], width: float, color: Color) -> None:
        scaled = [(x * self.side, y * self.side) for x, y in points]
        self.pen.line(scaled, fill=color, width=max(1, round(width * self.side)), joint="curve")

    def polygon(self, points: list[tuple[float, float]], color: Color) -> None:
        self.pen.polygon([(x * self.side, y * self.side) for x, y in points], fill=color)


def draw_post(sentiment: str, size: int, random: np.random.Generator) -> Image.Image:
    """Draw an image that a human reads as positive, neutral or negative.

    Args:
        sentiment: "positive", "neutral" or "negative".
        size: side in pixels.
        random: generator for motif, position, size, colors, clutter, light and noise.

    Returns:
        An RGB image.
    """
    large = size * OVERSAMPLING
    motifs: tuple[Callable[[_Canvas, str], None], ...] = (_face, _weather, _heart)
    # The background color depends on the sentiment only weakly and does not decide it.
    lean = {"positive": 32, "neutral": 0, "negative": -35}[sentiment]
    base = [int(value) for value in random.integers(70 + lean, 215 + lean, 3)]
    image = Image.new("RGB", (large, large), tuple(base))
    canvas = _Canvas(image, random)
    _clutter(canvas, 2)
    motifs[int(random.integers(len(motifs)))](canvas, sentiment)
    if random.random() < 0.35:
        _clutter(canvas, 1)
    image = image.resize((size, size), Image.Resampling.BOX)
    pixels = np.asarray(image, np.float32)
    light = np.float32(random.uniform(0.8, 1.1))
    noise = random.standard_normal(pixels.shape, np.float32) * np.float32(random.uniform(3, 16))
    result: Image.Image = Image.fromarray(np.clip(pixels * light + noise, 0, 255).astype(np.uint8))
    return result


def _clutter(canvas: _Canvas, count: int) -> None:
    for _ in range(count):
        x, y = canvas.uniform(0, 1), canvas.uniform(0, 1)
        color, reach = canvas.color(40, 240), canvas.uniform(0.05, 0.14)
        if canvas.random.random() < 0.5:
            canvas.disc(x, y, reach, color)
        else:
            corners = [(x, y), (x + reach, y + reach / 3), (x + reach / 2, y + reach)]
            canvas.polygon(corners, color)


def _face(canvas: _Canvas, sentiment: str) -> None:
    x, y = canvas.uniform(0.42, 0.58), canvas.uniform(0.42, 0.58)
    radius = canvas.uniform(0.3, 0.38)
    dark = canvas.color(0, 70)
    canvas.disc(x, y, radius * 1.06, dark)
    canvas.disc(x, y, radius, canvas.color(140, 255))
    for side in (-1, 1):
        canvas.disc(x + side * radius * 0.36, y - radius * 0.25, radius * 0.11, dark)
    bend = {
        "positive": canvas.uniform(0.28, 0.5),
        "neutral": canvas.uniform(-0.04, 0.04),
        "negative": -canvas.uniform(0.28, 0.5),
    }[sentiment]
    width, middle = canvas.uniform(0.38, 0.55), 0.4
    mouth = [
        (x + t * width * radius, y + (middle + bend * (0.5 - t * t)) * radius)
        for t in np.linspace(-1, 1, 13).tolist()
    ]
    canvas.line(mouth, radius * 0.15, dark)
    if sentiment == "negative" and canvas.random.random() < 0.5:
        for side in (-1, 1):
            outer = (x + side * radius * 0.6, y - radius * 0.58)
            canvas.line([outer, (x + side * radius * 0.2, y - radius * 0.42)], 0.02, dark)


def _cloud(canvas: _Canvas, x: float, y: float, reach: float, color: Color) -> None:
    for dx, dy, scale in ((-0.6, 0.1, 0.55), (0, -0.15, 0.7), (0.6, 0.1, 0.55), (0, 0.2, 0.55)):
        canvas.disc(x + dx * reach, y + dy * reach, scale * reach, color)


def _weather(canvas: _Canvas, sentiment: str) -> None:
    x, y = canvas.uniform(0.3, 0.7), canvas.uniform(0.25, 0.45)
    hill = canvas.color(30, 200)
    canvas.polygon([(0, 0.85), (canvas.uniform(0.2, 0.8), 0.72), (1, 0.85), (1, 1), (0, 1)], hill)
    reach = canvas.uniform(0.15, 0.22)
    if sentiment == "positive":
        sun = (255, int(canvas.uniform(180, 235)), int(canvas.uniform(20, 90)))
        start = canvas.uniform(0, 1)
        for ray in range(8):
            angle = 2 * math.pi * (ray + start) / 8
            tip = (x + 1.8 * reach * math.cos(angle), y + 1.8 * reach * math.sin(angle))
            canvas.line([(x, y), tip], 0.03, sun)
        canvas.disc(x, y, reach, sun)
        if canvas.random.random() < 0.4:
            _cloud(canvas, x + 0.2, y + 0.12, reach * 0.7, (245, 245, 245))
        return
    gray = int(canvas.uniform(150, 235) if sentiment == "neutral" else canvas.uniform(50, 130))
    if sentiment == "negative":
        drop = (40, 70, int(canvas.uniform(130, 230)))
        for _ in range(9):
            left, top = x + canvas.uniform(-1.1, 1.1) * reach, y + canvas.uniform(0.6, 1.6) * reach
            canvas.line([(left, top), (left - 0.03, top + 0.1)], 0.018, drop)
        if canvas.random.random() < 0.5:
            bolt = [(x, y + 0.1), (x - 0.06, y + 0.25), (x + 0.02, y + 0.24), (x - 0.04, y + 0.42)]
            canvas.line(bolt, 0.03, (250, 230, 60))
    _cloud(canvas, x, y, reach, (gray, gray, min(255, gray + 8)))


def _heart(canvas: _Canvas, sentiment: str) -> None:
    x, y = canvas.uniform(0.43, 0.57), canvas.uniform(0.43, 0.57)
    reach = canvas.uniform(0.26, 0.34)
    color = canvas.color(60, 255)
    if sentiment == "neutral":
        corners = int(canvas.random.integers(4, 7))
        turn = canvas.uniform(0, math.pi)
        angles = [turn + 2 * math.pi * corner / corners for corner in range(corners)]
        canvas.polygon([(x + reach * math.cos(a), y + reach * math.sin(a)) for a in angles], color)
        return
    if canvas.random.random() < 0.6:
        color = (int(canvas.uniform(190, 255)), int(canvas.uniform(0, 90)), color[2] // 2)
    gap = 0.0 if sentiment == "positive" else canvas.uniform(0.035, 0.08)
    outline = []
    for step in np.linspace(0, 2 * math.pi, 60).tolist():
        across = math.sin(step) ** 3
        down = 13 * math.cos(step) - 5 * math.cos(2 * step) - 2 * math.cos(3 * step)
        outline.append((across, -(down - math.cos(4 * step)) / 16))
    crack = [(0.0, -0.35), (0.2, -0.1), (-0.15, 0.2), (0.12, 0.5), (0.0, 1.0)]
    right = [point for point in outline if point[0] >= -1e-9] + crack[::-1]
    left = [point for point in reversed(outline) if point[0] <= 1e-9] + crack[::-1]
    for half, shift in ((right, gap), (left, -gap)):
        drop = abs(gap) * 0.5 if shift > 0 else 0.0
        canvas.polygon([(x + u * reach + shift, y + v * reach + drop) for u, v in half], color)
