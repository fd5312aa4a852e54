"""What a sharded checkpoint says of itself: where training was, what made it, and the checksums of its files."""

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from fathom.checkpoint.files import MANIFEST
from fathom.parallel.mesh import ALONE, Axis
from fathom.runs import write_whole

FORMAT = 1
BLOCK = 1 << 20  # bytes hashed at a time


@dataclass(frozen=True)
class FileRecord:
    """A file as it was written."""

    bytes: int
    sha256: str  # hex


@dataclass(frozen=True)
class Manifest:
    """`values` are the training's own (step, data, schedule, layout); `files` all that must be there to load."""

    values: dict[str, Any]
    files: dict[str, FileRecord]
    code: str  # of the package that wrote it, as `code_hash` gives
    versions: dict[str, str]  # torch, python

    @staticmethod
    def of(values: dict[str, Any], files: Mapping[str, FileRecord]) -> "Manifest":
        """A manifest by this package."""
        versions = {"torch": str(torch.__version__), "python": platform.python_version()}
        return Manifest(values, dict(sorted(files.items())), code_hash(), versions)

    def write(self, directory: Path) -> None:
        """Write the file that makes a checkpoint whole; it carries a checksum of its own."""
        content = {"format": FORMAT, **asdict(self)}
        write_whole(directory / MANIFEST, json.dumps({**content, "checksum": _checksum(content)}, indent=1))

    @staticmethod
    def read(directory: Path) -> "Manifest":
        """Raises ValueError for a missing, broken or altered manifest, naming it."""
        path = directory / MANIFEST
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            claimed = content.pop("checksum")
            if claimed != _checksum(content):
                raise ValueError("its checksum does not fit its content")
            if content["format"] != FORMAT:
                raise ValueError(f"it has format {content['format']}, and this Fathom reads format {FORMAT}")
            files = {name: FileRecord(**record) for name, record in content["files"].items()}
            return Manifest(content["values"], files, content["code"], content["versions"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is damaged ({error}); go on from the checkpoint before it") from error

    def verify(self, directory: Path, everyone: Axis = ALONE) -> None:
        """Compare all files with what was written: their sizes, then their SHA-256, shared out over the processes.

        Raises ValueError on every process, naming each file that is missing, truncated or altered.
        """
        mine = list(self.files.items())[everyone.rank :: everyone.size]
        complaints = [told for name, record in mine if (told := _complaint(directory / name, record))]
        found = [told for part in everyone.gather(complaints) for told in part]  # pyright: ignore[reportGeneralTypeIssues]
        if found:
            raise ValueError(f"{directory} is damaged: {'; '.join(found)}. Go on from the checkpoint before it")


def record_file(path: Path) -> FileRecord:
    """Size and SHA-256 of a file as it lies on the disk."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return FileRecord(path.stat().st_size, digest.hexdigest())


@cache
def code_hash() -> str:
    """Hex SHA-256 of the package's Python files and their names."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _complaint(path: Path, record: FileRecord) -> str:
    """What is wrong with a file; nothing where it is as it was written."""
    try:
        size = path.stat().st_size
        if size != record.bytes:
            return f"{path.name} holds {size} bytes of {record.bytes}"
        return "" if record_file(path) == record else f"{path.name} is not what was written (its SHA-256 differs)"
    except FileNotFoundError:
        return f"{path.name} is missing"
    except OSError as error:
        return f"{path.name} cannot be read ({error.strerror})"
