"""The page of a report: one file that needs no other, and never half written."""

from __future__ import annotations

import base64
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from regard.apps.pages import small_jpeg, with_commons
from regard.errors import ConfigError, MissingExtraError, RegardError
from regard.files import write_whole

LONG_SIDE = 480
"""Of a photo in the page, in pixels."""

_SIGN = re.compile(r'<meta name="generator" content="regard [^"]*report">')
_FIGURE = re.compile(r'href="figures/([\w.-]+)"')


def check_place(out: Path) -> None:
    """Refuse a folder that holds something that is no report.

    Raises:
        ConfigError: ``out`` is a file, or a folder with files but without a report.
    """
    if out.is_dir() and (not any(out.iterdir()) or _SIGN.search(_old_page(out))):
        return
    if out.exists():
        raise ConfigError(
            f"{out} exists and holds no report. Take a new folder for --out, or delete this one."
        )


def embedded_photo(photo: Image.Image) -> str:
    """A photo as a data URI that a page can hold: a JPEG of at most :data:`LONG_SIDE`."""
    content = base64.b64encode(small_jpeg(photo, LONG_SIDE)).decode("ascii")
    return f"data:image/jpeg;base64,{content}"


@contextmanager
def written_beside(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` for figures, until :func:`write_page` moves them in.

    What fails or is stopped half way leaves ``out`` as it was.
    """
    beside = out.with_name(f".{out.name}.{uuid.uuid4().hex}.new")
    try:
        beside.mkdir(parents=True)
        yield beside
    except OSError as error:
        raise RegardError(
            f"{error.filename or out} cannot be written: {error.strerror or error}. Give a place "
            "that can be written to."
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def write_page(content: Mapping[str, Any], figures: Path, out: Path) -> Path:
    """Write ``out/index.html``; figures of an earlier report that this one lacks are deleted.

    Args:
        content: what the template asks for. All texts are escaped; only the charts' SVG is not,
            which was escaped when it was drawn.
        figures: from :func:`written_beside`; its files are moved to ``out/figures``.
        out: the report's folder.

    Raises:
        MissingExtraError: jinja2 is not installed.
        OSError: something cannot be written.
    """
    page = _rendered(content)
    old = _old_page(out)
    (out / "figures").mkdir(parents=True, exist_ok=True)
    for figure in figures.iterdir():
        figure.replace(out / "figures" / figure.name)
    write_whole(out / "index.html", page.encode())
    for name in set(_FIGURE.findall(old)) - set(_FIGURE.findall(page)):
        (out / "figures" / name).unlink(missing_ok=True)
    return out / "index.html"


def _rendered(content: Mapping[str, Any]) -> str:
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise MissingExtraError("The report", "report") from error
    template = with_commons(Path(__file__).with_name("report.html").read_text(encoding="utf-8"))
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(template).render(content)


def _old_page(out: Path) -> str:
    try:
        return (out / "index.html").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
