"""The engines that Fathom can stand in front of: their commands, and our flags in their words."""

import json
import shlex
import shutil
import sys
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path

from fathom.serve.options import ServeOptions

# What the front does itself, whatever the engine, and what each engine has a flag for.
FRONT = frozenset(
    {
        "host",
        "port",
        "name",
        "api_key_file",
        "rows",
        "context",
        "queue",
        "choices",
        "body_bytes",
        "reasoning",
        "keep_alive_s",
        "drain_s",
        "cors_origin",
        "drafts",
        "engine",
        "engine_command",
        "engine_args",
    }
)
HONOURED = {"vllm": FRONT | {"default_max_tokens"}, "sglang": FRONT | {"device"}}
INSTALL = {"vllm": "pip install vllm", "sglang": "pip install 'sglang[all]'"}


def require_flags(options: ServeOptions) -> None:
    """Raise ValueError for a flag that the engine has no counterpart of."""
    for field in fields(options):
        value = getattr(options, field.name)
        if value != field.default and field.name not in HONOURED[options.engine]:
            raise ValueError(f"--{field.name} {value} has no counterpart in {options.engine}; leave it out")
    if options.drafts == "auto":
        raise ValueError(f"--drafts auto has no counterpart in {options.engine}; give a count")


def engine_program(options: ServeOptions) -> list[str]:
    """The words that start the engine, --engine_command or what its package installs; ValueError where it is absent."""
    if options.engine_command:
        words = shlex.split(options.engine_command)
        if not words or shutil.which(words[0]) is None:
            raise ValueError(f"--engine_command {options.engine_command!r} names no program that can be run")
        return words
    if options.engine == "vllm":
        words, found = ["vllm", "serve"], shutil.which("vllm") is not None
    else:
        words, found = [sys.executable, "-m", "sglang.launch_server"], find_spec("sglang") is not None
    if not found:
        raise ValueError(
            f"{options.engine} is not installed here; {INSTALL[options.engine]}, or name its program with "
            "--engine_command"
        )
    return words


def engine_flags(options: ServeOptions, model: Path, name: str, port: int) -> list[str]:
    """The engine's flags for what our options say; it listens on this machine alone."""
    flags = _vllm(options, model, name) if options.engine == "vllm" else _sglang(options, model, name)
    return [*flags, "--host", "127.0.0.1", "--port", str(port), *shlex.split(options.engine_args)]


def _vllm(options: ServeOptions, model: Path, name: str) -> list[str]:
    flags = [str(model), "--served-model-name", name, "--max-num-seqs", str(options.rows)]
    flags += ["--reasoning-parser", "deepseek_r1", "--enable-prompt-tokens-details"]
    # what a request may write that names no bound: vLLM takes it from the generation config
    flags += ["--override-generation-config", json.dumps({"max_new_tokens": options.default_max_tokens})]
    if options.context:
        flags += ["--max-model-len", str(options.context)]
    if options.drafts:
        flags += ["--speculative-config", json.dumps({"method": "mtp", "num_speculative_tokens": options.drafts})]
    return flags


def _sglang(options: ServeOptions, model: Path, name: str) -> list[str]:
    flags = ["--model-path", str(model), "--served-model-name", name]
    flags += ["--max-running-requests", str(options.rows), "--reasoning-parser", "deepseek-r1"]
    flags += ["--enable-metrics", "--enable-cache-report"]
    if options.context:
        flags += ["--context-length", str(options.context)]
    if options.device != "auto":
        flags += ["--device", options.device]
    if options.drafts:  # from the MTP module of the checkpoint; the token that is checked first counts as a draft there
        flags += ["--speculative-algorithm", "EAGLE", "--speculative-num-steps", str(options.drafts)]
        flags += ["--speculative-eagle-topk", "1", "--speculative-num-draft-tokens", str(int(options.drafts) + 1)]
    return flags
