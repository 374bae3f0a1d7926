"""Captions beside their photos: a text, or XMP that programs for photos read.

What a person has written or changed is left. A sidecar is regard's own as long as it says what the
photo's record makes it say, byte for byte; so nothing has to be remembered, and nothing can be
forgotten. A sidecar is taken away before its photo's record is replaced and written again after
that: after a kill it is either right or missing, and what is missing the next run writes. So is
what is empty: a new sidecar is not waited for to be on the disk, which takes longer than a caption.
"""

from __future__ import annotations

import errno
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import escape, quoteattr

from regard.apps.alt_text import alt_text
from regard.apps.hashes import hash_of
from regard.apps.records import path_of
from regard.errors import ConfigError
from regard.files import write_whole

Record = Mapping[str, Any]

_LARGEST = 16 << 20


class Sidecar(ABC):
    """Something written beside each photo."""

    @abstractmethod
    def file(self, photo: str) -> Path:
        """Where it is."""

    def put(self, made: Record, *, overwrite: bool) -> str | None:
        """Write it for a record; why not, where it is left as a person wrote it.

        Raises:
            OSError: it cannot be written.
        """
        file = self.file(path_of(made))
        there = _read(file) or None
        wanted = self._with(there, made, overwrite=overwrite)
        if isinstance(wanted, _Left):
            return wanted.why
        try:
            if wanted != there:
                _write(file, wanted, firmly=there is not None)  # a person wrote what is there
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            return "its name would be too long"
        return None

    def withdraw(self, made: Record) -> None:
        """Take away what was written for a record, if it is still as it was written.

        Raises:
            OSError: it cannot be taken away.
        """
        file = self.file(path_of(made))
        there = _read(file)
        if there is None:
            return
        rest = self._without(there, made)
        if rest is None:
            file.unlink()
        elif rest != there:
            _write(file, rest, firmly=True)

    @abstractmethod
    def _with(self, there: bytes | None, made: Record, *, overwrite: bool) -> bytes | _Left:
        """What a file shall hold that holds this now."""

    @abstractmethod
    def _without(self, there: bytes, made: Record) -> bytes | None:
        """What is left of a file without the record's part; none if nothing is."""


class TextBeside(Sidecar):
    """A ``.txt`` of one line beside each photo: ``a.jpg.txt``, so that ``a.png`` has its own."""

    def file(self, photo: str) -> Path:
        """The photo's name and ``.txt``."""
        return Path(photo + ".txt")

    def _with(self, there: bytes | None, made: Record, *, overwrite: bool) -> bytes | _Left:
        text = _line(made)
        if there in (None, text) or overwrite:
            return text
        return _Left("it was written or changed by a person")

    def _without(self, there: bytes, made: Record) -> bytes | None:
        return None if there == _line(made) else there


class XmpBeside(Sidecar):
    """XMP with the caption as ``dc:description`` and an alternative text of IPTC.

    An XMP file that is there is added to, and every byte of it is kept; if it has a description or
    an alternative text already, it is left.

    Args:
        stem: ``a.xmp`` for ``a.jpg``, which Lightroom and Bridge look for; of two photos of that
            stem the second is left without. Otherwise ``a.jpg.xmp``, as darktable and digiKam.
    """

    def __init__(self, *, stem: bool = False) -> None:
        self._stem = stem

    def file(self, photo: str) -> Path:
        """The photo's name and ``.xmp``, or that in place of its ending."""
        return Path(photo).with_suffix(".xmp") if self._stem else Path(photo + ".xmp")

    def _with(self, there: bytes | None, made: Record, *, overwrite: bool) -> bytes | _Left:
        if there is None:
            return (_HEAD + _block(made, "") + _FOOT).encode()
        try:
            text, about, taken = _understood(there)
        except ValueError as error:
            return _Left(f"it cannot be added to: {error}")
        if _block(made, about) in text:
            return there
        if taken:
            if not overwrite:
                return _Left("it has a description that was written or changed by a person")
            text = _without_descriptions(text)
        end = _END.search(text)
        if end is None:
            return _Left("it cannot be added to: it has no closing tag of rdf:RDF")
        added = (text[: end.start()] + _block(made, about) + text[end.start() :]).encode()
        try:
            ElementTree.fromstring(added)
        except ElementTree.ParseError:
            return _Left("it cannot be added to: its parts are written in an unusual way")
        return added

    def _without(self, there: bytes, made: Record) -> bytes | None:
        if there == (_HEAD + _block(made, "") + _FOOT).encode():
            return None
        try:
            text, about, _ = _understood(there)
        except ValueError:
            return there
        return text.replace(_block(made, about), "").encode()


class _Left:
    """A file that stays as it is."""

    def __init__(self, why: str) -> None:
        self.why = why


def _line(made: Record) -> bytes:
    text = made.get("alt_text") or made["caption"]
    return (" ".join(text.split()) + "\n").encode("utf-8", "replace")


def _read(file: Path) -> bytes | None:
    try:
        with file.open("rb") as stream:
            return stream.read(_LARGEST)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENAMETOOLONG):
            raise
        return None


def _write(file: Path, content: bytes, *, firmly: bool) -> None:
    # Of a name of its own: runs with other records may write in this folder at the same time.
    beside = file.with_name(f".{hash_of(file.name):016x}.regard.new")
    write_whole(file, content, firmly=firmly, beside=beside)


# XMP

_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_DC = "http://purl.org/dc/elements/1.1/"
_IPTC = "http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/"
_OWN = "urn:regard:caption/"
_DESCRIPTIONS = {f"{{{_DC}}}description", f"{{{_IPTC}}}AltTextAccessibility"}

_HEAD = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
    f'<x:xmpmeta xmlns:x="adobe:ns:meta/">\n <rdf:RDF xmlns:rdf="{_RDF}">\n'
)
_FOOT = ' </rdf:RDF>\n</x:xmpmeta>\n<?xpacket end="w"?>\n'
_END = re.compile(r"[ \t]*</[\w.-]+:RDF\s*>(?!.*</[\w.-]+:RDF)", re.DOTALL)
_NO_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _block(made: Record, about: str) -> str:
    """A description of its own within an XMP file; RDF allows any number of the same subject."""
    caption, alternative = made["caption"], made.get("alt_text") or alt_text(made["caption"])

    def said(name: str, text: str) -> str:
        plain = escape(_NO_XML.sub("", " ".join(text.split())))
        text = f'<rdf:li xml:lang="x-default">{plain}</rdf:li>'
        return f"   <{name}><rdf:Alt>{text}</rdf:Alt></{name}>\n"

    return (
        f"  <rdf:Description rdf:about={quoteattr(about)}\n"
        f'    xmlns:rdf="{_RDF}" xmlns:dc="{_DC}"\n'
        f'    xmlns:Iptc4xmpCore="{_IPTC}" xmlns:regard="{_OWN}"\n'
        '    regard:MachineMade="True" regard:Reviewed="False">\n'
        + said("dc:description", caption)
        + said("Iptc4xmpCore:AltTextAccessibility", alternative)
        + "  </rdf:Description>\n"
    )


def _understood(content: bytes) -> tuple[str, str, bool]:
    """An XMP file's text, what it is about, and whether it has a description.

    Raises:
        ValueError: it is none, or one in which something cannot be added safely.
    """
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError("it is not in UTF-8") from error
    if "<!DOCTYPE" in text or len(content) >= _LARGEST:
        raise ValueError("it is no plain XMP")
    try:
        root = ElementTree.fromstring(content)
    except ElementTree.ParseError as error:
        raise ValueError("it is no whole XML") from error
    descriptions = list(root.iter(f"{{{_RDF}}}Description"))
    about = descriptions[0].get(f"{{{_RDF}}}about", "") if descriptions else ""
    taken = any(
        element.tag in _DESCRIPTIONS or not _DESCRIPTIONS.isdisjoint(element.attrib)
        for element in root.iter()
    )
    return text, about, taken


def _without_descriptions(text: str) -> str:
    """An XMP file's text without description, alternative text, and our marks of them."""
    for namespace, names in (
        (_DC, "description"), (_IPTC, "AltTextAccessibility"), (_OWN, "MachineMade|Reviewed")
    ):  # fmt: skip
        for prefix in set(re.findall(rf'xmlns:([\w.-]+)=["\']{re.escape(namespace)}["\']', text)):
            name = rf"{re.escape(prefix)}:(?:{names})"
            text = re.sub(rf"\s*<({name})\b[^>]*?(?:/>|>.*?</\1\s*>)", "", text, flags=re.DOTALL)
            text = re.sub(rf"\s+{name}=(?:\"[^\"]*\"|'[^']*')", "", text)
    return text


def sidecars_of(*, txt: bool, xmp: bool, xmp_stem: bool) -> tuple[Sidecar, ...]:
    """The kinds that are asked for.

    Raises:
        ConfigError: both names of XMP.
    """
    if xmp and xmp_stem:
        raise ConfigError(
            "--xmp and --xmp-stem name the same file in two ways. Give one: the first makes "
            "photo.jpg.xmp, the second photo.xmp."
        )
    kinds: list[Sidecar] = [TextBeside()] if txt else []
    if xmp or xmp_stem:
        kinds.append(XmpBeside(stem=xmp_stem))
    return tuple(kinds)
