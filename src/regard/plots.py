"""Figures: where each word looked, how a training went, generated beside actual captions.

Figures are drawn without pyplot, which keeps a global list of them; a lock keeps threads apart,
because matplotlib does not. Shapes: ``T`` words, ``gh``, ``gw`` the grid of regions.
"""

import io
import math
import re
import textwrap
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
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
_INK, _FAINT, _RULE, _WHITE = "#1a1a1a", "#8a8a8a", "#eeeeee", "#ffffff"
_COLOURS = ("#2a6fbb", "#d9701e", "#3a8a4d", "#8a5aa8", "#b3383f", "#1f8a8a")
_BLUE, _ORANGE = _COLOURS[:2]
# The names by which a page with a drawing in it gives its own colours, such as those of the night.
_VARIABLES = {
    _INK: "--ink",
    _FAINT: "--faint",
    _RULE: "--rule",
    _WHITE: "--drawing",
} | {colour: f"--run-{number}" for number, colour in enumerate(_COLOURS, 1)}

Curves = tuple[Sequence[Mapping[str, float]], Sequence[Mapping[str, float]]]
"""What was logged of a run: ``iteration``, ``loss`` and ``learning_rate`` of each step; ``epoch``,
``train_loss``, ``val_loss`` and ``CIDEr`` of each epoch. What was not measured may be missing or
NaN."""


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
    """Draw a training: the four charts of :func:`curve_charts` on one page.

    Args:
        steps: ``iteration``, ``loss`` and ``learning_rate`` of each step that was logged.
        epochs: ``epoch``, ``train_loss``, ``val_loss`` and ``CIDEr`` of each epoch; what was not
            measured may be missing or NaN.
        out: a PNG, SVG or PDF file; folders are made as needed.

    """
    with _LOCK:
        page = _Page(2 * _CHART[0], 2 * _CHART[1], "drawing the losses")
        for i, paint in enumerate(_CHARTS.values()):
            paint(_room_for_chart(page, i % 2, i // 2), {"": (steps, epochs)})
        page.write(out)


def curve_charts(runs: Mapping[str, Curves], folder: Path) -> dict[str, str]:
    """Draw the curves of one or more runs: loss of each batch and epoch, CIDEr, learning rate.

    Args:
        runs: what each logged, by the name that is shown.
        folder: where each chart is written, ``NAME.png`` and ``NAME.svg``; made as needed.

    Returns:
        By the charts' names, ``batch-loss``, ``epoch-loss``, ``cider`` and ``learning-rate``, and
        ``reward``, ``cut-off`` and ``words-used`` if a run learnt from a reward, an ``<svg>``
        element to be put into a page. Its words are in the page's font and its colours
        are the page's CSS variables: ``--ink``, ``--faint``, ``--rule``, ``--drawing`` (behind
        everything) and ``--run-1`` to ``--run-6``.

    """
    elements = {}
    rewarded = any("reward" in row for steps, _ in runs.values() for row in steps)
    for name, paint in (_CHARTS | (_REWARD_CHARTS if rewarded else {})).items():
        with _LOCK:
            page = _Page(*_CHART, "drawing the losses")
            paint(_room_for_chart(page, 0, 0), runs)
            page.write(folder / f"{name}.png")
            page.write(folder / f"{name}.svg")
            elements[name] = page.element(name)
    return elements


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
        axes.tick_params(labelsize=8.5, color=_FAINT, labelcolor=_INK, length=3)
        axes.grid(axis="y", color=_RULE, linewidth=0.8)
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
        from matplotlib import rc_context

        try:
            with rc_context({"svg.hashsalt": "regard"}):
                self._figure.savefig(
                    beside, format=ending[1:], dpi=_DOTS, metadata=dates.get(ending)
                )
            beside.replace(out)
        finally:
            beside.unlink(missing_ok=True)

    def element(self, name: str) -> str:
        """The page as an ``<svg>`` element; see :func:`curve_charts`."""
        from matplotlib import rc_context

        stream = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        # The salt is in the ids of clips and marks, which are the page's: two charts differ in it.
        with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
            self._figure.savefig(stream, format="svg", metadata=nothing)
        text = stream.getvalue()
        text = text[text.index("<svg") :]
        # Its size, its ids and its style of everything would be the whole page's.
        text = re.sub(r'^<svg[^>]*(viewBox="[^"]*")[^>]*>', r"<svg \1>", text)
        text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
        text = re.sub(r'<g id="[^"]*"', "<g", text).replace("xlink:href", "href")
        return re.sub(r'style="[^"]*"', _with_variables, text)


def _with_variables(style: re.Match[str]) -> str:
    """A style of a drawing with the page's colours and font."""
    text = re.sub(r"font-family: [^;\"]*(; )?", "", style[0])
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return text


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


_CHART = (4.4, 3.0)
"""Width and height of a chart with its words, in inches: as wide as a phone, at the same size."""


def _room_for_chart(page: _Page, column: int, row: int) -> Any:
    width, height = _CHART
    return page.chart(column * width + 0.62, row * height + 0.4, width - 0.8, height - 0.9)


def _paint_batches(axes: Any, runs: Mapping[str, Curves]) -> None:
    everything = []
    for colour, name, (steps, _) in _coloured(runs):
        iteration, loss = _series(steps, "iteration"), _series(steps, "loss")
        raw, smooth = ("", name) if name else ("each batch", "smoothed")
        faint = 0.3 if len(runs) == 1 else 0.15
        axes.plot(iteration, loss, color=colour, alpha=faint, linewidth=0.7, label=raw)
        axes.plot(iteration, _smoothed(loss), color=colour, linewidth=1.7, label=smooth)
        everything.append(loss)
    _label(axes, "Loss of each batch", "iteration", "nats a word", everything)


def _paint_epochs(axes: Any, runs: Mapping[str, Curves]) -> None:
    everything = []
    alone = len(runs) == 1
    for colour, name, (_, epochs) in _coloured(runs):
        epoch, train, val = (_series(epochs, n) for n in ("epoch", "train_loss", "val_loss"))
        labels = ("training", "validation") if alone else ("", name)
        lines = (("o-", colour), ("o-", _ORANGE)) if alone else (("o:", colour), ("o-", colour))
        for values, label, (style, own) in zip((train, val), labels, lines, strict=True):
            axes.plot(epoch, values, style, color=own, markersize=3, linewidth=1.5, label=label)
        everything += [train, val]
    title = "Loss of each epoch" + ("" if alone else " (dotted: training)")
    _label(axes, title, "epoch", "nats a word", everything)


def _paint_by_epoch(
    axes: Any, runs: Mapping[str, Curves], *, field: str, title: str, unit: str
) -> None:
    everything = []
    for colour, name, (_, epochs) in _coloured(runs):
        values = _series(epochs, field)
        axes.plot(
            _series(epochs, "epoch"), values, "o-", color=colour, markersize=3, linewidth=1.5,
            label=name,
        )  # fmt: skip
        everything.append(values)
    _label(axes, f"{title} after each epoch", "epoch", unit, everything)


_paint_cider = partial(_paint_by_epoch, field="CIDEr", title="CIDEr", unit="CIDEr")


def _paint_reward(axes: Any, runs: Mapping[str, Curves]) -> None:
    everything = []
    for colour, name, (steps, _) in _coloured(runs):
        iteration, reward = _series(steps, "iteration"), _series(steps, "reward")
        axes.plot(iteration, reward, color=colour, alpha=0.3, linewidth=0.7)
        axes.plot(iteration, _smoothed(reward), color=colour, linewidth=1.7, label=name)
        everything.append(reward)
    _label(axes, "Reward of the drawn captions", "iteration", "", everything)


def _paint_rate(axes: Any, runs: Mapping[str, Curves]) -> None:
    everything = []
    for colour, name, (steps, _) in _coloured(runs):
        rate = _series(steps, "learning_rate")
        axes.plot(_series(steps, "iteration"), rate, color=colour, linewidth=1.5, label=name)
        everything.append(rate)
    _label(axes, "Learning rate", "iteration", "", everything)
    axes.yaxis.set_major_formatter(lambda rate, _: f"{rate:g}")
    if any(np.isfinite(rate).any() for rate in everything):
        axes.set_ylim(bottom=0)


_CHARTS: dict[str, Callable[[Any, Mapping[str, Curves]], None]] = {
    "batch-loss": _paint_batches,
    "epoch-loss": _paint_epochs,
    "cider": _paint_cider,
    "learning-rate": _paint_rate,
}


_REWARD_CHARTS: dict[str, Callable[[Any, Mapping[str, Curves]], None]] = {
    "reward": _paint_reward,
    "repeated": partial(
        _paint_by_epoch, field="repeated", title="A phrase repeated", unit="share of captions"
    ),
    "cut-off": partial(
        _paint_by_epoch, field="cut_off", title="Captions cut off", unit="share of captions"
    ),
    "words-used": partial(
        _paint_by_epoch, field="words_used", title="Different words", unit="words"
    ),
}
"""Of runs that learn from a reward: it, and the faults it is known to teach."""


def _coloured(runs: Mapping[str, Curves]) -> list[tuple[str, str, Curves]]:
    """Colour, label and curves of each run; a run alone needs no label.

    The space in front is for matplotlib, which leaves labels that begin with ``_`` out.
    """
    return [
        (_COLOURS[i % len(_COLOURS)], f" {name}" if len(runs) > 1 else "", curves)
        for i, (name, curves) in enumerate(runs.items())
    ]


def _label(axes: Any, title: str, x: str, y: str, values: Sequence[NDArray[np.float64]]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, fontsize=10.5, loc="left", color=_INK, parse_math=False)
    axes.set_xlabel(x, fontsize=9, color=_INK)
    axes.set_ylabel(y, fontsize=9, color=_INK)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    if not any(np.isfinite(one).any() for one in values):
        axes.set_xticks([])
        axes.set_yticks([])
        axes.text(0.5, 0.5, "nothing yet", transform=axes.transAxes, ha="center", color=_FAINT)
    elif axes.get_legend_handles_labels()[0]:
        legend = axes.legend(fontsize=8.5, frameon=False, labelcolor=_INK)
        for text in legend.get_texts():
            text.set_parse_math(False)  # the name of a run may hold dollar signs
