"""The model card of an exported captioner: how it is used without regard, and what it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from regard.text.subwords import BEGIN, Subwords

_PROGRAM = """import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

folder, photo = Path(sys.argv[1]), sys.argv[2]
config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
encoder, start, step = (
    onnxruntime.InferenceSession(folder / f"{{name}}.onnx")
    for name in ("encoder", "decoder_start", "decoder_step")
)


def run(session, **inputs):
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs)))


how = config["encoder"]["preparation"]
height, width = how["size"]
image = ImageOps.exif_transpose(Image.open(photo)).convert("RGB")
{seen}filter = Image.Resampling[how["interpolation"].upper()]
pixels = np.asarray(image.resize((width, height), filter{box}), np.float32) / 255
pixels = (pixels - np.float32(how["mean"])) / np.float32(how["std"])
photos = pixels.transpose(2, 0, 1)[None]  # (B, 3, height, width), here with B = 1

state = run(start, **run(encoder, photos=photos))
words = config["vocabulary"]
ids, token = [], words["start"]
while len(ids) < 30:
    said = run(step, tokens=np.full((1, 1), token), **state)  # (B, K), here with K = 1
    state |= {{name: said[f"next_{{name}}"] for name in config["state"]["rows"]}}
    scores = said["logits"][0, 0]  # (V,); said["attention"][0, 0] is where it looked, (H W,)
    scores[words["forbidden"] + ([] if ids else [words["end"]])] = -np.inf
    token = int(scores.argmax())
    if token == words["end"]:
        break
    ids.append(token)

{spell}
"""

_CROPPED = """scale = max(
    round(width / how["crop_fraction"]) / image.width,
    round(height / how["crop_fraction"]) / image.height,
)
large = max(width, round(image.width * scale)), max(height, round(image.height * scale))
left, top = round((large[0] - width) / 2), round((large[1] - height) / 2)
seen = (
    left * image.width / large[0],
    top * image.height / large[1],
    min(image.width, (left + width) * image.width / large[0]),
    min(image.height, (top + height) * image.height / large[1]),
)
"""

_WORDS = """vocabulary = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
vocabulary = vocabulary["special"] + vocabulary["words"]
print(" ".join(vocabulary[i] for i in ids))"""

_PIECES = f"""from tokenizers import Tokenizer, decoders

tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
pieces = [tokenizer.id_to_token(i - words["before"]) for i in ids]
print(decoders.ByteLevel().decode([p.replace("{BEGIN}", "Ġ") for p in pieces]).strip())"""


def render_card(described: Mapping[str, Any], card: str) -> str:
    """The card, in Markdown.

    Args:
        described: the folder's ``config.json``.
        card: that of the model that was exported, with its front matter; or nothing.
    """
    crops = described["encoder"]["preparation"]["resize"] == "crop"
    pieces = described["vocabulary"]["file"] == Subwords.file_name
    program = _PROGRAM.format(
        seen=_CROPPED if crops else "",
        box=", box=seen" if crops else "",
        spell=_PIECES if pieces else _WORDS,
    )
    front, body = _apart(card)
    rows = "\n".join(
        f"| `{name}` | {' x '.join(map(str, shape))} | {kind} |"
        for kind, shapes in described["state"].items()
        for name, shape in shapes.items()
    )
    packages = "onnxruntime numpy pillow" + (" tokenizers" if pieces else "")
    return f"""{front}# An image captioner as ONNX

Exported by regard {described["regard"]}. With regard it is used as any other captioner:

    regard caption PHOTO --model THIS_FOLDER --gaze DIR

Without it, after `pip install {packages}`, this program captions a photo, always taking the word
that scores highest:

```python
{program}```

`encoder.onnx` makes regions of prepared photos, rounded to what float16 holds, as in training.
`decoder_start.onnx` makes the state before the first word of them. `decoder_step.onnx` takes one
word of each of K captions of each of B photos, `tokens`, and gives `logits` (B, K, V), `attention`
(B, K, H W), which sums to 1, and of each tensor of the state's rows the next, `next_NAME`. To begin
with a K other than 1, repeat the rows that the start gives along their second dimension.

| state | shape | |
|---|---|---|
{rows}

{body}"""


def _apart(card: str) -> tuple[str, str]:
    """The front matter of a card, and its text as a part of another: headings one level down."""
    front, text = "", card
    if card.startswith("---\n") and (end := card.find("\n---\n")) > 0:
        front, text = card[: end + 5] + "\n", card[end + 5 :]
    lines, code = [], False
    for line in text.strip().splitlines():
        code ^= line.startswith("```")
        lines.append(f"#{line}" if line.startswith("#") and not code else line)
    return front, "\n".join(lines) + "\n" if lines else ""
