"""The claims of the story as docs/paper.md lists them: paper, code, test, measured. The page is the one source."""

import ast
import re
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).parent.parent
HEADER = "| name | claim | paper | file | test | measured |"
LINK = re.compile(r"\[([^\]]+)\]\(([^)\s]+)\)")
REFERENCE = re.compile(r"`((?:fathom|tests)/[\w./]+)(?::([\w.]+))?`")


@dataclass(frozen=True)
class Row:
    """One claim; the cells are Markdown as the page has them."""

    name: str
    claim: str
    paper: str
    file: str
    test: str
    measured: str


def page() -> Path:
    """The page beside the package in a checkout, and within it where the package was installed."""
    shipped = PACKAGE / "paper.md"
    return shipped if shipped.exists() else PACKAGE.parent / "docs" / "paper.md"


def rows(text: str) -> dict[str, Row]:
    """The claims of the page by name."""
    table = text.partition(HEADER)[2].partition("\n\n")[0]
    cells = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in table.splitlines()[2:]]
    return {row.name: row for row in (Row(name.strip("`"), *rest) for name, *rest in cells)}


def references(cell: str) -> list[tuple[str, str]]:
    """The files that a cell names, each with the definition within it, if any is named."""
    return REFERENCE.findall(cell)


def line_of(source: str, name: str) -> int | None:
    """The line on which a module defines `name`, or `Class.member`; None where it does not."""
    body, line = ast.parse(source).body, None
    for part in name.split("."):
        found = next((node for node in body if part in _names(node)), None)
        if found is None:
            return None
        body, line = found.body if isinstance(found, ast.ClassDef) else [], found.lineno
    return line


def _names(node: ast.stmt) -> set[str]:
    match node:
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.AnnAssign(target=ast.Name(id=name)):
            return {name}
        case ast.Assign(targets=targets):
            return {target.id for target in targets if isinstance(target, ast.Name)}
        case _:
            return set()


def explain(name: str) -> str:
    """A claim for a terminal, each file as a path with its line. Raises ValueError with the names there are."""
    known = rows(page().read_text(encoding="utf-8"))
    if name not in known:
        raise ValueError(f"{name!r} is no claim that Fathom keeps; there are {', '.join(known)}")
    row = known[name]
    return "\n".join(
        [
            f"{row.name}: {_plain(row.claim)}",
            "",
            f"paper     {_plain(row.paper)}",
            *_listed("code", row.file),
            *_listed("test", row.test),
            f"measured  {_plain(row.measured)}",
        ]
    )


def _listed(label: str, cell: str) -> list[str]:
    """One line a file; tests are not installed, so they keep their path in the repository there."""
    places = [_place(path, name) for path, name in references(cell)]
    return [f"{label if not number else '':10}{place}" for number, place in enumerate(places)]


def _place(path: str, name: str) -> str:
    file = PACKAGE.parent / path
    if not file.exists():
        return path
    line = line_of(file.read_text(encoding="utf-8"), name) if name else None
    return f"{file}:{line}" if line else str(file)


def _plain(cell: str) -> str:
    """Markdown as words, with a link's target behind its text."""
    return LINK.sub(lambda link: f"{link[1]} ({_target(link[2])})", cell).replace("`", "")


def _target(link: str) -> str:
    return link if link.startswith("https://") else f"docs/{link}"
