"""What pages have in common: the light of the gaze, and a policy that lets nothing else run."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path


def gaze_script() -> str:
    """The script that draws a gaze over a photo."""
    return Path(__file__).with_name("gaze.js").read_text(encoding="utf-8")


def with_policy(page: str) -> str:
    """The page with ``SCRIPT-HASH`` of its policy filled in: the browser runs its own script only.

    Args:
        page: HTML with one ``<script>`` of its own.
    """
    script = page.split("<script>", 1)[1].split("</script>", 1)[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return page.replace("SCRIPT-HASH", f"'sha256-{digest}'", 1)
