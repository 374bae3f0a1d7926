"""What drawn captions are rewarded for: CIDEr, BLEU-4 and CLIPScore, in any proportion.

CIDEr and BLEU-4 are of words **and the end**, in captions and references: without it, a caption
that breaks off before the last words of its references ("a man in a") loses nothing by it, and is
soon learnt. The same as in Rennie et al.'s own program.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from regard.metrics.bleu import bleu
from regard.metrics.clipscore import PROMPT, WEIGHT
from regard.metrics.consensus import Consensus
from regard.text.tokenise import detokenise
from regard.text.vocabulary import END

Words = Sequence[str]
Floats = NDArray[np.float64]


class Judge(Protocol):
    """What a caption's nearness to its photo is asked of: a CLIP."""

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Texts to vectors of length 1, ``(n, E)``."""
        ...


class Reward:
    """A weighted sum of scores of drawn captions.

    Args:
        references: of all photos that are learnt, as tokens; the document frequencies of CIDEr
            are theirs.
        weights: by name, of :data:`regard.config.REWARDS`.
        clip: for ``clipscore``.
        seen: ``(photos, E)``, for ``clipscore``: the photos as the CLIP sees them.
    """

    def __init__(
        self,
        references: Sequence[Sequence[Words]],
        weights: Mapping[str, float],
        *,
        clip: Judge | None = None,
        seen: NDArray[np.float32] | None = None,
    ) -> None:
        self._references = [[(*words, END) for words in group] for group in references]
        self._clip, self._seen = clip, seen
        kinds: dict[str, Callable[[], Kind]] = {
            "cider": lambda: self._cider(),
            "bleu4": lambda: self._bleu4,
            "clipscore": lambda: self._clipscore,
        }
        self._kinds = {name: (kinds[name](), weight) for name, weight in weights.items()}

    def __call__(
        self, photos: Sequence[int], captions: Sequence[Sequence[Words]], ended: NDArray[np.bool_]
    ) -> Floats:
        """The reward of each caption, ``(B, K)``.

        Args:
            photos: B numbers of photos.
            captions: for each K captions, without the end.
            ended: ``(B, K)``, whether it was said.
        """
        total = np.zeros(ended.shape)
        for kind, weight in self._kinds.values():
            total += weight * kind(photos, captions, ended)
        return total

    def _cider(self) -> Kind:
        consensus = Consensus(self._references)
        return lambda photos, captions, ended: consensus(photos, _with_ends(captions, ended))

    def _bleu4(
        self, photos: Sequence[int], captions: Sequence[Sequence[Words]], ended: NDArray[np.bool_]
    ) -> Floats:
        """Of each caption alone, by the formula for a corpus with its constants."""
        flat = list(chain.from_iterable(_with_ends(captions, ended)))
        wanted = [self._references[p] for p in photos for _ in range(ended.shape[1])]
        scores: Floats = bleu(flat, wanted)[3].per_photo.reshape(ended.shape)
        return scores

    def _clipscore(
        self, photos: Sequence[int], captions: Sequence[Sequence[Words]], ended: NDArray[np.bool_]
    ) -> Floats:
        assert self._clip is not None
        assert self._seen is not None
        texts = [PROMPT + detokenise(words) for words in chain.from_iterable(captions)]
        said = self._clip.embed_texts(texts).reshape(*ended.shape, -1)  # (B, K, E)
        near: Floats = np.einsum("be,bke->bk", self._seen[np.array(photos)], said, dtype=float)
        return WEIGHT * np.maximum(0, near)


Kind = Callable[[Sequence[int], Sequence[Sequence[Words]], NDArray[np.bool_]], Floats]


def _with_ends(
    captions: Sequence[Sequence[Words]], ended: NDArray[np.bool_]
) -> list[list[tuple[str, ...]]]:
    return [
        [(*words, END) if end else tuple(words) for words, end in zip(group, ends, strict=True)]
        for group, ends in zip(captions, ended.tolist(), strict=True)
    ]
