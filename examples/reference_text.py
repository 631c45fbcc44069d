"""A real text that every Python brings along: the language reference that `help()` shows."""

import re
from pydoc_data.topics import topics
from typing import NamedTuple

CHAPTERS = [
    "objects", "types", "specialnames", "execmodel", "exceptions", "compound", "assignment", "raise", "calls",
    "typesseq", "strings",
]  # fmt: skip
UNDERLINE = re.compile(r"[=*\-~^\"]{3,}$")
CUT = re.compile(r"(?<=\w)- +(?=\w)")  # of a word at the end of a line
WORDS = 70  # of a passage, at least, unless its section ends


class Passage(NamedTuple):
    title: str
    text: str


def passages() -> list[Passage]:
    """The paragraphs of the main chapters, joined to passages of some 70 words; sections don't mix."""
    found: dict[str, Passage] = {}  # chapters overlap
    for topic in (topics[name] for name in CHAPTERS):
        title, words = "", []
        for block in re.split(r"\n\s*\n", topic):
            lines = block.strip().replace("**", "").splitlines()
            heading = len(lines) >= 2 and UNDERLINE.match(lines[1])
            if heading or len(words) >= WORDS:
                _add(found, title, words)
                words = []
            if heading:
                title, lines = lines[0], lines[2:]
            if lines and not lines[0].startswith("+--"):  # tables don't read well
                words += CUT.sub("-", " ".join(lines)).split()
        _add(found, title, words)
    return list(found.values())


def _add(found: dict[str, Passage], title: str, words: list[str]) -> None:
    text = " ".join(words)
    if len(words) >= 20:
        found.setdefault(text, Passage(title.replace('"', ""), text))
