"""Long texts cut into documents where a reader would cut them: at scenes, chapters, poems, then paragraphs."""

import re

LONGEST = 4000  # characters of one document
SHORTEST = 200  # a shorter section (the line "ACT I.") joins the one it announces

_NUMBER = r"(?:[IVXLC]+|\d+)\b"
_HEADING = re.compile(
    rf"(?:\A|(?<=\n\n))(?=(?:act|scene|chapter|book|part) {_NUMBER}|(?-i:[IVXLC]+)\.?\n)", re.IGNORECASE
)


def split_text(text: str, longest: int = LONGEST) -> list[str]:
    """Documents of at most `longest` characters, white space at their ends removed."""
    documents: list[str] = []
    held = ""
    for section in _HEADING.split(text):
        held += section
        if len(held) >= SHORTEST:
            documents += cut(held.strip(), longest)
            held = ""
    return [document for document in (*documents, *cut(held.strip(), longest)) if document]


def cut(text: str, longest: int, separators: tuple[str, ...] = ("\n\n", "\n", " ")) -> list[str]:
    """Pieces of at most `longest` characters, cut at the first separator that makes them small enough."""
    if len(text) <= longest:
        return [text]
    if not separators:
        return [text[start : start + longest] for start in range(0, len(text), longest)]
    separator, *finer = separators
    pieces: list[str] = []
    held: list[str] = []
    size = 0
    for part in text.split(separator):
        if held and size + len(part) > longest:
            pieces.append(separator.join(held))
            held, size = [], 0
        held.append(part)
        size += len(part) + len(separator)
    pieces.append(separator.join(held))
    return [small for piece in pieces for small in cut(piece, longest, tuple(finer))]
