"""Objects of a JSONL file, one a line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast


def read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Every object with the number of its line, from 1; empty lines are passed over.

    Raises ValueError naming the file where it is missing or empty, and the line where it is no JSON object.
    """
    if not path.is_file():
        raise ValueError(f"there is no file {path}; name one with task.file, one JSON object a line")
    found = False
    for number, content in enumerate(path.read_bytes().splitlines(), start=1):
        if not content.strip():
            continue
        try:
            value = json.loads(content, parse_float=str)  # 0.10 stays as it is written
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} line {number}: it is no JSON ({error})") from None
        if not isinstance(value, dict):
            raise ValueError(f"{path} line {number}: it is no JSON object")
        found = True
        yield number, cast(dict[str, Any], value)
    if not found:
        raise ValueError(f"{path} holds no problem; write one JSON object a line")
