r"""Final answers as models write them, brought to one form, so that equal ones compare equal.

Two answers are equal when their forms are: numbers by exact value (`0.5`, `1/2` and `\frac12` are one), tuples and
intervals entry by entry, all else as text without spaces, case and the LaTeX that changes only its looks. Nothing is
computed: `2+2` and `\sqrt4` are not 4, and 1/3 is not 0.333.
"""

import re
from fractions import Fraction

LONGEST = 1000  # characters of an answer; a longer one is compared as it stands
LONGEST_NUMBER = 100

_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")

# LaTeX that changes an answer's looks and not its meaning; longer names first
_LOOKS = re.compile(
    r"\\(?:displaystyle|left|right|big|Big|[,;:! ])|\\?\$|\\\(|\\\)|\\\[|\\\]|~|\^\{?\\circ\}?|\\?%|\\degree"
)
_WORDS = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
_FRACTION = re.compile(r"\\[dt]?frac")
_NAMED = re.compile(r"[a-z](?:\([a-z]\))?=([^=]+)")  # x=5, f(x)=5
_INTEGER = r"[0-9]+|[0-9]{1,3}(?:,[0-9]{3})+"
_NUMBER = re.compile(rf"([+-]?)((?:{_INTEGER})?(?:\.[0-9]+)?|(?:{_INTEGER})\.)")
_OVER = re.compile(r"([+-]?)([0-9]*)\\frac(?:\{([+-]?[0-9]+)\}|([0-9]))(?:\{([0-9]+)\}|([0-9]))")
_SLASH = re.compile(r"([+-]?[0-9.]+)/([0-9.]+)")
_BRACKETS = {"(": ")]", "[": ")]", "{": "}"}


def last_boxed(text: str) -> str | None:
    r"""What the last closed `\boxed{}` of a text holds; None where there is none, or an empty one."""
    for found in reversed(list(_BOXED.finditer(text))):
        depth = 1
        for place in range(found.end(), min(len(text), found.end() + LONGEST)):
            depth += (text[place] == "{") - (text[place] == "}")
            if not depth:
                return text[found.end() : place].strip() or None
    return None


def canonical(answer: str) -> str:
    """The form in which equal answers are the same text."""
    if len(answer) > LONGEST:
        return answer
    text = _WORDS.sub(r"\1", _LOOKS.sub("", answer)).replace("\\{", "{").replace("\\}", "}")
    text = "".join(_FRACTION.sub(r"\\frac", text).split()).rstrip(".").lower()
    named = _NAMED.fullmatch(text)
    return _form(named[1] if named else text)


def _form(text: str) -> str:
    value = _value(text)
    if value is not None:
        return str(value)
    if len(text) > 2 and text[-1] in _BRACKETS.get(text[0], ""):
        entries = _entries(text[1:-1])
        if len(entries) > 1:
            return text[0] + ",".join(map(_form, entries)) + text[-1]
    return text


def _value(text: str) -> Fraction | None:
    """The number that a text is, if it is one."""
    if not 0 < len(text) <= LONGEST_NUMBER:
        return None
    if text[0] == "{" and text[-1] == "}":
        return _value(text[1:-1])
    if found := _OVER.fullmatch(text):
        sign, whole, *parts = found.groups()
        top, bottom = parts[0] or parts[1], int(parts[2] or parts[3])
        if not bottom or (whole and not top.isdigit()):  # what stands in front of a fraction is added to it
            return None
        value = int(whole or 0) + Fraction(int(top), bottom)
        return -value if sign == "-" else value
    if found := _SLASH.fullmatch(text):
        top, bottom = _decimal(found[1]), _decimal(found[2])
        return top / bottom if top is not None and bottom else None
    return _decimal(text)


def _decimal(text: str) -> Fraction | None:
    found = _NUMBER.fullmatch(text)
    if not found or not found[2]:
        return None
    return Fraction(found[1] + found[2].replace(",", "").rstrip("."))


def _entries(text: str) -> list[str]:
    """The parts between commas that stand in no bracket."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return parts
