"""What pages have in common: their look, words that show their gaze, small pictures, a policy."""

from __future__ import annotations

import base64
import hashlib
import io
from pathlib import Path

from PIL import Image


def with_commons(page: str) -> str:
    """A page with its ``PAGE-STYLE`` and ``PAGE-SCRIPT`` filled in, and its policy's hash.

    The browser runs the page's own script and nothing else: the policy knows it by its hash.

    Args:
        page: HTML with one ``<script>`` of its own, and ``SCRIPT-HASH`` in its policy.
    """
    for mark, name in (("PAGE-STYLE", "page.css"), ("PAGE-SCRIPT", "page.js")):
        common = Path(__file__).with_name(name).read_text(encoding="utf-8")
        page = page.replace(mark, common.strip(), 1)
    script = page.split("<script>", 1)[1].split("</script>", 1)[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return page.replace("SCRIPT-HASH", f"'sha256-{digest}'", 1)


def small_jpeg(photo: Image.Image, side: int) -> bytes:
    """A photo as the file of a JPEG with at most ``side`` pixels a side."""
    small = photo.convert("RGB")
    small.thumbnail((side, side))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=82, optimize=True)
    return stream.getvalue()
