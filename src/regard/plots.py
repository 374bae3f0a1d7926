"""Figures: where each word looked, how a training went, generated beside actual captions.

Figures are drawn without pyplot, which keeps a global list of them; a lock keeps threads apart,
because matplotlib does not. Shapes: ``T`` words, ``gh``, ``gw`` the grid of regions.
"""

import math
import textwrap
import threading
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from regard.errors import MissingExtraError, RegardError
from regard.images import Placement, overlay_map

_LOCK = threading.Lock()
_DOTS = 200  # per inch, of PNG files and of pictures within SVG and PDF files
_ENDINGS = (".png", ".svg", ".pdf")
_INK, _FAINT, _BLUE, _ORANGE, _GREEN = "#1a1a1a", "#8a8a8a", "#2a6fbb", "#d9701e", "#3a8a4d"


def gaze_figure(
    photo: Image.Image,
    words: Sequence[str],
    maps: NDArray[np.floating[Any]],
    placement: Placement,
    out: Path,
    *,
    caption: str | None = None,
) -> None:
    """Draw the photo, then for each word the photo lit where the word looked.

    The panels follow figure 5 of Show, Attend and Tell. In each, the place looked at most is shown
    in full light, so that panels tell where, not how firmly, a word looked.

    Args:
        photo: the upright photo, RGB.
        words: T words.
        maps: their weights on the grid, ``(T, gh, gw)``.
        placement: what the encoder saw, in pixels of the photo.
        out: a PNG, SVG or PDF file; folders are made as needed.
        caption: a line above everything.

    """
    if len(words) != len(maps):
        raise ValueError(f"each word has one map, got {len(words)} words and {len(maps)} maps")
    panels = len(words) + 1
    aspect = photo.width / photo.height
    wide = min(4.0, max(0.8, 1.75 * math.sqrt(aspect)))
    high = min(4.0, wide / aspect)
    wide = max(wide if high < 4.0 else high * aspect, 0.8)
    columns = _columns(panels, most=max(2, round(11.2 / wide)))
    rows = math.ceil(panels / columns)
    gap, title, margin, size = 0.09, 0.27, 0.1, 11.0

    width = columns * (wide + gap) - gap + 2 * margin
    lines = _wrapped(caption or "", width - 2 * margin, size + 1)
    head = len(lines) * 0.24 + 0.06 if caption else 0.0
    height = rows * (high + title + gap) - gap + head + 2 * margin

    # What the paper cannot show is left out before the maps are laid over it.
    small = photo.copy()
    small.thumbnail((max(1, round(wide * _DOTS)), max(1, round(high * _DOTS))))
    shrink = small.width / photo.width, small.height / photo.height
    seen = (
        placement[0] * shrink[0],
        placement[1] * shrink[1],
        placement[2] * shrink[0],
        placement[3] * shrink[1],
    )
    with _LOCK:
        page = _Page(width, height, "drawing the gaze")
        if caption:
            page.text(margin, margin, "\n".join(lines), size=size + 1, weight="bold")
        for panel in range(panels):
            left = margin + (panel % columns) * (wide + gap)
            top = margin + head + (panel // columns) * (high + title + gap) + title
            if panel:
                word = words[panel - 1]
                page.text(
                    left + wide / 2,
                    top - 0.05,
                    word,
                    size=min(size, wide * 72 / (0.62 * max(1, len(word)))),
                    across="center",
                    down="bottom",
                )
                page.picture(left, top, wide, high, _lit(small, maps[panel - 1], seen))
            else:
                page.picture(left, top, wide, high, np.asarray(small))
        page.write(out)


def loss_figure(
    steps: Sequence[Mapping[str, float]], epochs: Sequence[Mapping[str, float]], out: Path
) -> None:
    """Draw the loss of each batch, the losses and CIDEr of each epoch, and the learning rate.

    Args:
        steps: ``iteration``, ``loss`` and ``learning_rate`` of each step that was logged.
        epochs: ``epoch``, ``train_loss``, ``val_loss`` and ``CIDEr`` of each epoch; what was not
            measured may be missing or NaN.
        out: a PNG, SVG or PDF file; folders are made as needed.

    """
    iteration, loss, rate = (_series(steps, n) for n in ("iteration", "loss", "learning_rate"))
    epoch, train, val, cider = (
        _series(epochs, n) for n in ("epoch", "train_loss", "val_loss", "CIDEr")
    )
    with _LOCK:
        page = _Page(13.2, 3.9, "drawing the losses")
        first, second, third = (page.chart(left, 0.55, 3.55, 2.75) for left in (0.65, 4.85, 9.45))

        first.plot(iteration, loss, color=_BLUE, alpha=0.3, linewidth=0.8, label="each batch")
        first.plot(iteration, _smoothed(loss), color=_BLUE, linewidth=1.8, label="smoothed")
        _label(first, "Loss of each batch", "iteration", "loss", loss)

        second.plot(epoch, train, "o-", color=_BLUE, markersize=4, label="training")
        second.plot(epoch, val, "o-", color=_ORANGE, markersize=4, label="validation")
        _label(second, "Each epoch", "epoch", "loss", np.concatenate([train, val]))
        if np.isfinite(cider).any():
            other = second.twinx()
            other.plot(epoch, cider, "s--", color=_GREEN, markersize=4, label="CIDEr")
            other.set_ylabel("CIDEr", color=_GREEN, fontsize=9)
            other.tick_params(labelsize=8, colors=_GREEN, length=3)
            other.spines[["top", "left", "bottom"]].set_visible(False)
            other.spines["right"].set_color(_GREEN)
            _legend(second, other)

        third.plot(iteration, rate, color=_INK, linewidth=1.5)
        _label(third, "Learning rate", "iteration", "learning rate", rate)
        third.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=False)
        third.yaxis.get_offset_text().set_fontsize(8)
        if np.isfinite(rate).any():
            third.set_ylim(bottom=0)
        page.write(out)


def gallery_figure(rows: Sequence[tuple[Image.Image, str, Sequence[str]]], out: Path) -> None:
    """Draw photos, each beside its generated and its actual captions.

    Args:
        rows: photo, generated caption, actual captions.
        out: a PNG, SVG or PDF file; folders are made as needed.

    """
    box, reading, margin, gap, size, line = 2.6, 5.2, 0.2, 0.3, 10.5, 0.2
    cards = []
    for photo, generated, actual in rows:
        scale = min(box / photo.width, box / photo.height)
        texts = [("Generated:", _wrapped(generated or "(no words)", reading - 0.15, size))]
        if actual:
            wrapped = [_wrapped(text, reading - 0.3, size) for text in actual]
            each = [
                ("–  " if not i else "    ") + part
                for lines in wrapped
                for i, part in enumerate(lines)
            ]
            texts.append(("Actual:", each))
        tall = sum(line * (len(lines) + 1) for _, lines in texts) + 0.1 * (len(texts) - 1)
        cards.append((photo, photo.width * scale, photo.height * scale, texts, tall))
    heights = [max(high, tall) for _, _, high, _, tall in cards]
    height = sum(heights) + gap * max(0, len(cards) - 1) + 2 * margin
    with _LOCK:
        page = _Page(2 * margin + box + gap + reading, height, "drawing the gallery")
        top = margin
        for i, (photo, wide, high, texts, _) in enumerate(cards):
            if i:
                page.line(margin, top - gap / 2, box + gap + reading)
            small = photo.convert("RGB")
            small.thumbnail((max(1, round(wide * _DOTS)), max(1, round(high * _DOTS))))
            page.picture(margin + (box - wide) / 2, top, wide, high, np.asarray(small))
            y = top
            for j, (label, lines) in enumerate(texts):
                colour = _FAINT if j else _BLUE
                page.text(margin + box + gap, y, label, size=size, weight="bold", colour=colour)
                for part in lines:
                    y += line
                    page.text(margin + box + gap + 0.12, y, part, size=size if j else size + 0.5)
                y += line + 0.1
            top += heights[i] + gap
        page.write(out)


class _Page:
    """A white page measured in inches from its top left corner."""

    def __init__(self, width: float, height: float, purpose: str) -> None:
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError as error:
            raise MissingExtraError(purpose, "report") from error
        self._width, self._height = width, height
        self._figure = Figure(figsize=(width, height), dpi=_DOTS, facecolor="white")
        FigureCanvasAgg(self._figure)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float,
        weight: str = "normal",
        colour: str = _INK,
        across: str = "left",
        down: str = "top",
    ) -> None:
        self._figure.text(
            x / self._width,
            1 - y / self._height,
            text,
            fontsize=size,
            fontweight=weight,
            color=colour,
            ha=across,
            va=down,
            linespacing=1.3,
            parse_math=False,  # a word may hold dollar signs
        )

    def line(self, x: float, y: float, width: float) -> None:
        from matplotlib.lines import Line2D

        across = [x / self._width, (x + width) / self._width]
        down = 1 - y / self._height
        self._figure.add_artist(Line2D(across, [down, down], color="#dddddd", linewidth=0.8))

    def picture(
        self, x: float, y: float, width: float, height: float, pixels: NDArray[np.uint8]
    ) -> None:
        axes = self._axes(x, y, width, height)
        axes.imshow(pixels, interpolation="antialiased")
        axes.set_axis_off()

    def chart(self, x: float, y: float, width: float, height: float) -> Any:
        axes = self._axes(x, y, width, height)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(_FAINT)
        axes.tick_params(labelsize=8, color=_FAINT, length=3)
        axes.grid(axis="y", color="#eeeeee", linewidth=0.8)
        axes.set_axisbelow(True)
        return axes

    def _axes(self, x: float, y: float, width: float, height: float) -> Any:
        return self._figure.add_axes(
            (
                x / self._width,
                1 - (y + height) / self._height,
                width / self._width,
                height / self._height,
            )
        )

    def write(self, out: Path) -> None:
        """Write the page beside ``out``, then rename it, so that no half file is ever seen."""
        ending = out.suffix.lower()
        if ending not in _ENDINGS:
            raise RegardError(
                f"{out} ends in {ending or 'nothing'}. Figures are written as "
                f"{', '.join(_ENDINGS)}. Change the ending."
            )
        out.parent.mkdir(parents=True, exist_ok=True)
        beside = out.with_name(f".{uuid.uuid4().hex}.new")
        # Without the date, the same figure is the same file.
        dates = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
        try:
            self._figure.savefig(beside, format=ending[1:], dpi=_DOTS, metadata=dates.get(ending))
            beside.replace(out)
        finally:
            beside.unlink(missing_ok=True)


def _columns(panels: int, most: int) -> int:
    """As few rows as possible, then as few empty places as possible."""
    return math.ceil(panels / math.ceil(panels / most))


def _lit(
    photo: Image.Image, weights: NDArray[np.floating[Any]], placement: Placement
) -> NDArray[np.uint8]:
    """The photo, in the dark but for where the weights are: ``(h, w, 3)``."""
    light = overlay_map(weights, photo.size, placement)
    light = (light / max(float(light.max()), 1e-12))[:, :, None]
    pixels = np.asarray(photo, dtype=np.float32)
    # The dark part keeps some shape; the light part is lifted, or black things would stay black.
    shown = pixels * (0.16 + 0.84 * light) + (255 - pixels) * 0.22 * light**2
    lit: NDArray[np.uint8] = np.rint(shown.clip(0, 255)).astype(np.uint8)
    return lit


def _wrapped(text: str, width: float, size: float) -> list[str]:
    """The text in lines of at most about ``width`` inches."""
    return textwrap.wrap(text, max(8, int(width * 72 / (0.56 * size)))) or [""]


def _series(rows: Iterable[Mapping[str, float]], name: str) -> NDArray[np.float64]:
    return np.array([row.get(name, math.nan) for row in rows], dtype=np.float64)


def _smoothed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """A running mean whose memory is a fiftieth of all values, without a bias to the start."""
    keep = 1 - 1 / max(1.0, len(values) / 50)
    smoothed, mean, weight = np.full(len(values), math.nan), 0.0, 0.0
    for i, value in enumerate(values):
        if math.isfinite(value):
            mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        if weight:
            smoothed[i] = mean / weight
    return smoothed


def _label(axes: Any, title: str, x: str, y: str, values: NDArray[np.float64]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, fontsize=11, loc="left", color=_INK)
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    if not np.isfinite(values).any():
        axes.set_xticks([])
        axes.set_yticks([])
        axes.text(0.5, 0.5, "nothing yet", transform=axes.transAxes, ha="center", color=_FAINT)
    elif axes.get_legend_handles_labels()[0]:
        _legend(axes)


def _legend(*axes: Any) -> None:
    """One legend for all axes of a chart, below the last one's curves and above the first's."""
    found = [one.get_legend_handles_labels() for one in axes]
    handles = [handle for each, _ in found for handle in each]
    labels = [label for _, each in found for label in each]
    old = axes[0].get_legend()
    if old is not None:
        old.remove()
    axes[-1].legend(handles, labels, fontsize=8, frameon=False)
