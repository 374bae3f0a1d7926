"""What scores do not see: how varied captions are, and the faults that captioners fall into.

distinct-n is from Li et al., "A diversity-promoting objective function for neural conversation
models" (2016), section 5.2. The faults are those that are named again and again: a phrase said
twice ("a blue shirt and a blue shirt"), and an end in the middle of a phrase ("a man in a").
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from regard.metrics.score import Tokens

# Words that carry no meaning of their own: a run of these alone may come back ("in a ... in a").
_FUNCTION_WORDS = frozenset(
    "a an the and or but of in on at to with from by for as is are was were be being has have "
    "his her its their he she it they who that which this there up down out off into onto over "
    "while".split()
)

# Words with which one human caption in a thousand ends (5,000 of Flickr8k). Prepositions that end
# more of them (on, in, by, down) are left out: "while a man looks on".
_UNFINISHED = frozenset(
    "a an the and or but of with from for as is are was were his its their my our your "
    "into onto while that which who whose at to between".split()
)


def diagnose(
    captions: Sequence[Tokens],
    *,
    known: Collection[tuple[str, ...]] | None = None,
    vocabulary: Collection[str] | None = None,
    cut: Sequence[bool] | None = None,
) -> dict[str, float]:
    """Describe captions without references.

    Args:
        captions: n captions as tokens.
        known: captions of the training photos, as tokens, by which novelty is judged.
        vocabulary: words that the captioner could have used.
        cut: for each caption whether it was ended by force; an unfinished last word counts too.

    Returns:
        By name, shares from 0 to 1 unless said otherwise: ``distinct-1`` and ``distinct-2``
        (different words or pairs over all of them), ``different`` (captions that differ from all
        before them), ``novel`` (not among ``known``, if that is given), ``words used`` (a number),
        ``vocabulary used`` (if ``vocabulary`` is given), ``mean length``, ``shortest`` and
        ``longest`` (words), ``repeated`` (captions that say a phrase twice) and ``cut off``
        (captions without an end).
    """
    total = max(1, len(captions))
    words = {word for caption in captions for word in caption}
    lengths = [len(caption) for caption in captions]
    forced = cut if cut is not None else [False] * len(captions)
    found: dict[str, float] = {
        "distinct-1": distinct(captions, 1),
        "distinct-2": distinct(captions, 2),
        "different": len({tuple(caption) for caption in captions}) / total,
    }
    if known is not None:
        seen = set(known)
        found["novel"] = sum(tuple(caption) not in seen for caption in captions) / total
    found["words used"] = len(words)
    if vocabulary is not None:
        found["vocabulary used"] = len(words & set(vocabulary)) / max(1, len(set(vocabulary)))
    return found | {
        "mean length": sum(lengths) / total,
        "shortest": min(lengths, default=0),
        "longest": max(lengths, default=0),
        "repeated": sum(map(repeats, captions)) / total,
        "cut off": sum(
            by_force or unfinished(caption)
            for by_force, caption in zip(forced, captions, strict=True)
        )
        / total,
    }


def distinct(captions: Sequence[Tokens], n: int) -> float:
    """Different runs of ``n`` words over all runs of ``n`` words, 0 to 1."""
    runs = [tuple(c[i : i + n]) for c in captions for i in range(len(c) - n + 1)]
    return len(set(runs)) / max(1, len(runs))


def repeats(caption: Tokens) -> bool:
    """Whether a caption says something twice.

    That is the same word twice in a row, or a run of two words, not both of them function words,
    that comes back without overlapping itself.
    """
    first: dict[tuple[str, str], int] = {}
    for i in range(len(caption) - 1):
        pair = caption[i], caption[i + 1]
        if pair[0] == pair[1]:
            return True
        if not _FUNCTION_WORDS.issuperset(pair) and i >= first.setdefault(pair, i) + 2:
            return True
    return False


def unfinished(caption: Tokens) -> bool:
    """Whether a caption ends with a word after which something must follow, or has no word."""
    return not caption or caption[-1] in _UNFINISHED
