"""What the pages for readers name exists: files, functions, verbs, presets, flags, links."""

import ast
import re
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from fathom.cli import VERBS
from fathom.config import Config
from fathom.plan.question import Question
from fathom.presets import PRESETS

ROOT = Path(__file__).parent.parent
PAGES = [  # but for the results, which name what there was when they were measured
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "docs" / "results" / "README.md",
    *sorted((ROOT / "recipes").glob("*.md")),
]
CODE = re.compile(r"^```\w*\n(.*?)^```|`([^`\n]+)`", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
PATH = re.compile(r"(?<![\w./])(?:fathom|tests|docs|recipes|\.ci)/[\w./-]*\w/?(?::[\w.]+)?")
NAMED = re.compile(r"^\| `([\w.-]+)` ", re.MULTILINE)  # first cells of a table
SET_UP = {"test", "--help", "VERB"}  # what ./run takes beside verbs


def code_of(text: str) -> list[str]:
    """Code spans, and the lines of code blocks without their comments."""
    found = [block or span for block, span in CODE.findall(text)]
    return [line.partition("  #")[0] for part in found for line in part.splitlines()]


def table_of(text: str, header: str) -> list[str]:
    """The names in the first column of the table whose first heading is `header`."""
    table = text.partition(f"\n| {header} |")[2].partition("\n\n")[0]
    return NAMED.findall(table)


def definitions(source: str) -> set[str]:
    """Functions, classes, constants, and members of classes as `Class.member`."""
    found: set[str] = set()
    for node in ast.parse(source).body:
        members = node.body if isinstance(node, ast.ClassDef) else []
        own = names_of(node)
        found |= own | {f"{name}.{member}" for name in own for part in members for member in names_of(part)}
    return found


def names_of(node: ast.stmt) -> set[str]:
    match node:
        case (
            ast.FunctionDef(name=name)
            | ast.AsyncFunctionDef(name=name)
            | ast.ClassDef(name=name)
            | ast.AnnAssign(target=ast.Name(id=name))
        ):
            return {name}
        case ast.Assign(targets=targets):
            return {target.id for target in targets if isinstance(target, ast.Name)}
        case _:
            return set()


def flags_of(section: object, prefix: str = "--") -> set[str]:
    """Every flag that a config's fields make."""
    flags: set[str] = set()
    for field in fields(section):  # pyright: ignore[reportArgumentType]
        value = getattr(section, field.name)
        flags |= flags_of(value, f"{prefix}{field.name}.") if is_dataclass(value) else {prefix + field.name}
    return flags


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_names_only_what_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    code = code_of(text)
    for reference in (found for line in code for found in PATH.findall(line)):
        path, _, name = reference.partition(":")
        assert (ROOT / path).exists(), reference
        assert not name or name in definitions((ROOT / path).read_text(encoding="utf-8")), reference
    for line in code:
        for verb in re.findall(r"(?<![\w./])fathom ([a-z]+)", line):
            assert verb in VERBS, line
        for verb in re.findall(r"(?<!\w)\./run ([\w-]+)", line):
            assert verb in PRESETS or verb in VERBS or verb in SET_UP, line
        for name in re.findall(r"(?:fathom run|--preset|^preset =) \"?([\w.-]+)", line):
            assert name in PRESETS, line
        for flag in re.findall(r"--\w+\.[\w.]+", line):
            assert flag in flags_of(Config()) | flags_of(Question()), line
    for target in LINK.findall(text):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_the_readme_has_every_verb_and_no_other() -> None:
    assert table_of((ROOT / "README.md").read_text(encoding="utf-8"), "verb") == list(VERBS)


def test_presets_named_in_the_readme_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    tabled = table_of(text, "preset")
    assert tabled == [name for name in PRESETS if name.startswith("laptop-")]
    published = text.partition("**Published configs**")[2].partition("\n\n")[0]
    named = [name for name in code_of(published) if "/" not in name]
    assert named and set(named) <= set(PRESETS)
