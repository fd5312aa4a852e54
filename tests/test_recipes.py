"""Recipes for clusters: their syntax, and that every command in them is one that Fathom and torchrun take.

Nothing here has a cluster; what their own tools say of these files is not known.
"""

import itertools
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.distributed.run import get_args_parser

from fathom.config import Config
from fathom.config.load import load_config
from fathom.presets import preset

RECIPES = Path(__file__).parent.parent / "recipes"
CLUSTERS = ["slurm.sbatch", "trainjob.yaml", "job.yaml", "sky.yaml"]


def script_of(name: str) -> str:
    """What a shell runs."""
    text = (RECIPES / name).read_text(encoding="utf-8")
    if name.endswith(".sbatch"):
        return text
    found: list[str] = []

    def collect(node: Any) -> None:
        match node:
            case dict():
                found.extend(value for key, value in node.items() if key in ("run", "setup") and isinstance(value, str))
                found.extend(word for word in node.get("args") or [] if isinstance(word, str))
                for value in node.values():
                    collect(value)
            case list():
                for value in node:
                    collect(value)
            case _:
                pass

    for document in yaml.safe_load_all(text):
        collect(document)
    return "\n".join(found)


@pytest.mark.parametrize("name", CLUSTERS)
def test_a_shell_and_torchrun_and_fathom_can_read_a_recipe(name: str) -> None:
    script = script_of(name)
    subprocess.run(["bash", "-n"], input=script, text=True, check=True, capture_output=True)
    command = re.search(r"torchrun (.*?)(?:\|\||$)", script.replace("\\\n", " "), re.MULTILINE)
    assert command is not None
    given = get_args_parser().parse_args(shlex.split(command[1]))
    assert given.max_restarts == 20
    assert given.rdzv_backend == "c10d"  # static meetings know no restart
    assert given.shutdown_timeout > 30
    assert (given.module, given.training_script) == (True, "fathom")
    verb, *flags = given.training_script_args
    assert verb == "pretrain"
    values = dict(itertools.pairwise(flags))
    config = preset(values["--preset"])
    named = {flag.removeprefix("--"): values[flag] for flag in flags if re.match(r"--\w+\.", flag)}
    typed = {"parallel.shard": int, "resilience.hang_seconds": float}
    assert named.keys() == typed.keys()
    loaded = load_config(config, None, {path: typed[path](value) for path, value in named.items()})
    assert isinstance(loaded, Config)
    assert loaded.parallel.shard == 16
    assert "--resume" in flags
    assert "--out" in flags


def test_slurm_signals_the_agents_and_they_pass_it_on() -> None:
    text = (RECIPES / "slurm.sbatch").read_text(encoding="utf-8")
    assert re.search(r"^#SBATCH --signal=USR1@(\d+)$", text, re.MULTILINE)  # no B: then the script alone would get it
    assert "SIGUSR1" in text
