"""From a caption to its words, and back.

The published numbers of image captioning are counted on the words that Stanford's PTBTokenizer
3.4.1 finds after its punctuation has been taken out. :func:`tokenise` finds the same words without
Java. The rules were written from the observed behaviour of that program: it takes the longest
thing that it knows at each place, so the alternatives below stand with the one that would be
longer first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import ascii_lowercase

PUNCTUATION = frozenset(
    # as pycocoevalcap has it
    "'' ' `` ` . ? ! , : - -- ... ;".split()
    # what the Java program writes as one of those
    + '" “ ” « » ‘ ’ ‛ ‚ „ – — …'.split()
)
"""What is not counted as a word. Brackets are: they come out as ``-lrb-`` and the like."""

_ABBREVIATIONS = """
    adj adm adv al ala alex apr ariz assn assoc asst atty attys aug ave bhd bldg blvd brig bros
    calif capt cf cie cmdr co col colo comdr conn corp corps cos cpl ct dak dec dept det dr drs
    elec ens esq est etc ext feb fla fri ft ga gen gov govs hon inc ind insp intl invt jan jos jr
    jul jun kan kans ky lt ltd maj mar md messrs mfg mich minn mlle mme mo mon mont mr mrs ms msgr
    mt mtg natl neb nebr nev nov oct okla penn pfc ph plc ppte ppty pres prof profs pte ptes pty
    ptys pvt rd rep reps rev rt sen sens sep sept seq sfc sgt spc sq sr st ste supt sys tel tenn
    thu thurs treas tue tues univ va vs vt wed wis wisc wm wyo
""".split()
_CAPITAL_ABBREVIATIONS = "ark az del ill la mass miss ore pa tex wash".split()
_ABBREVIATIONS_BEFORE_NUMBERS = "art ca fig figs no nos op pp prop".split()


def _any_of(words: Sequence[str]) -> str:
    return "|".join(sorted(words, key=len, reverse=True))


_TOKEN = re.compile(
    rf"""
    # A word of small letters before a space. Not needed, but most words are such words.
      (?P<plain> [a-z]+ ) (?= [ ] ) (?<!cannot)(?<!gonna|gotta|lemme|gimme|wanna)
    | (?P<tag> <[/]?[A-Za-z!?][^<>\r\n]*> )
    | (?P<address>
          https?://[^\s"<>|()]+\.[^\s"<>|()]*[^\s"<>|.!?(){{}},\-]
        | (?:www\.)?(?:[^\W_][\w\-]*\.)+(?:com|net|org|edu)(?:/[^\s"<>|()]*[^\s"<>|.!?(){{}},\-])?
              (?![^\W_]|\.[^\W_])
        | www\.[^\W_][\w\-]*(?:\.[^\W_][\w\-]*)*
        | [A-Za-z0-9][^\s"<>|()@]*@[^\s"<>|().,@]+(?:\.[^\s"<>|().,@]+)*
        | @[A-Za-z_]\w* | \#[A-Za-z][A-Za-z0-9]*
        | c\+\+ | C\+\+ | [CcFf]\#
      )
    | (?P<entity> &(?:amp|lt|gt|quot|apos|nbsp|mdash|ndash); )
    | (?P<smiley>
          [<>]?[:;=8][\-o*']?[()DPdpO/\\:}}{{@|\[\]3](?![^\W_])
        | [\^oOxXT>\-]_[\^oOxXT<\-] | [xX]D\b
      )
    # Telephone numbers and fractions may hold a space; it leaves as a no-break space.
    | (?P<spaced>
          \(\d{{3}}\)[ ]?\d{{3}}[\- ]\d{{4}}
        | \+\d\d?[ ]\d\d[ ]\d{{3,4}}[ ]\d{{3,4}}
        | \d{{2,4}}[\- ]\d{{3,4}}[\- ]\d{{3,5}}
        | \d{{3,4}}[ ]\d{{4}}
        | \d{{1,4}}[ ]\d{{1,4}}/\d{{1,4}}(?!\d)
      )
    # Words with an apostrophe inside.
    | (?P<apostrophe>
          ['’](?:[Nn]['’]|[Ee][Mm]|[2-9]0s|[Cc]ause|[Tt]ill?)(?![^\W_])
        | (?:[Oo]l|[Dd]unkin|[Ss]omethin)['’](?!\w)
        | (?:[Cc]['’](?:mon|est)|[Ee]['’]er|[Ll]i['’]l|[Ee]v['’]ry|[Nn]at['’]l
            |[Nn]or['’]easter|[Ss]['’]mores
            |[Cc]ap['’]n)(?![^\W_])
        | [DdOoLlNn]['’](?!(?:ll|re|ve)(?![^\W_]))[^\W_]{{2,}}(?:-[^\W_]+)*
        | [^\W\d_]+[aeiouyAEIOUY]['’](?!(?:em)(?![^\W_]))[aeiouA-Z][^\W\d_]*
      )
    # Two words written as one.
    | (?P<joined>
          (?i: can(?=not\b) | (?:gon|wan)(?=na\b) | got(?=ta\b) | (?:lem|gim)(?=me\b) )
      )
    # A contraction is cut before its end: do n't.
    | (?P<cut> [^\W\d_]+ ) (?= [Nn]['’][Tt] )
    | (?P<ending> ['’](?:[SsMmDd]|[Rr][Ee]|[Vv][Ee]|[Ll][Ll]|[Nn])(?![^\W\d_]) | [Nn]['’][Tt] )
    | (?P<abbreviation>
          (?:[A-Za-z]\.)+-[^\W_]+
        | (?:[A-Za-z]\.)+[A-Za-z](?![\w.\-]) | (?:[A-Za-z]\.)+(?![^\W_])
        | (?:(?i:{_any_of(_ABBREVIATIONS)}) | {_any_of([w.title() for w in _CAPITAL_ABBREVIATIONS])}
            | {_any_of([w.upper() for w in _CAPITAL_ABBREVIATIONS])}) \.(?![^\W\d_])
        | (?i:{_any_of(_ABBREVIATIONS_BEFORE_NUMBERS)}) \.(?=\s*\d)
      )
    | (?P<number>
          \d{{1,2}}[\-/]\d{{1,2}}[\-/]\d{{2,4}}
        | [\-+]?\d*(?:[.:,]\d+)+ | [\-+]\d+(?![^\W\d_])
        | [A-Z]+(?:&[A-Z]+)+ | [A-Za-z]\+[A-Za-z]
      )
    | (?P<word>
          [^\W_]+(?:-[^\W\d_]+){{0,2}}(?:\\?/[^\W_]+(?:-[^\W\d_]+){{0,2}}){{1,2}}
        | [^\W_]+(?:-[^\W_]+)+
        | [^\W\d_][^\W_]*(?:[.!?][^\W\d_][^\W_]*)*
        | [^\W_]+
      )
    | (?P<money> (?:[A-Z]{{1,2}}|us)\$(?=\d) )
    | (?P<symbol> [!?]+ | \.\.\. | -{{5,}} | --+ | \*+ | _+ | @+ | \#+ | <<|>>| [^\s\w] )
    """,
    re.VERBOSE,
)

_SPELLINGS = {
    "(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-",
}  # fmt: skip


# Most captions are letters, spaces and commas with a period at the end, and few of these have words
# that are ruled. To cut the others there takes a twentieth of the time of the rules above.
_LETTERS = re.compile(r"[A-Za-z ,]*\.?")
_JOINED = "cannot gonna wanna gotta lemme gimme".split()
_DOTTED = [*_JOINED, *_ABBREVIATIONS, *_CAPITAL_ABBREVIATIONS, *ascii_lowercase]
_RULED = frozenset([*_JOINED, *(f"{word}." for word in _DOTTED)])


def tokenise(text: str) -> list[str]:
    """The words of a caption, in small letters, without punctuation."""
    if _LETTERS.fullmatch(text):
        words = text.lower().replace(",", " ").split()
        if _RULED.isdisjoint(words):
            return " ".join(words).rstrip(".").split()
    return _by_rules(text)


def _by_rules(text: str) -> list[str]:
    words = []
    for match in _TOKEN.finditer(text + " "):
        word = match.group().lower()
        if word not in PUNCTUATION:
            words.append(_SPELLINGS.get(word, word))
    return words


def detokenise(words: Sequence[str]) -> str:
    """The words as one readable line of small letters: ``a man 's hat`` becomes ``a man's hat``."""
    return re.sub(r" ('s|n't|'re|'ve|'ll|'d|'m)\b", r"\1", " ".join(words))
