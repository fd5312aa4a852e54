"""The tokenizer that goes along with a checkpoint, in the files that transformers' AutoTokenizer reads."""

import json
import shutil
from pathlib import Path

from fathom.config import ModelConfig
from fathom.text.special import ASSISTANT, BOS, EOS, PAD, THINK, USER

FILES = (
    "tokenizer.json",
    "prompt.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)

# The prompt of fathom.text.chat; an assistant's turn begins inside the thinking that the template opens.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    f"{{% if message['role'] == 'user' %}}{USER}{{{{ message['content'] }}}}"
    f"{{% elif message['role'] == 'assistant' %}}{ASSISTANT}{THINK}{{{{ message['content'] }}}}{{{{ eos_token }}}}"
    "{% else %}{{ raise_exception('only user and assistant turns are known') }}{% endif %}{% endfor %}"
    f"{{% if add_generation_prompt %}}{ASSISTANT}{THINK}{{% endif %}}"
)


def tokenizer_file(checkpoint: Path) -> Path:
    """The tokenizer.json of a checkpoint, beside it or, for RUN/STAGE/step_000050, of its run; ValueError without."""
    files = [checkpoint / "tokenizer.json", checkpoint.parent.parent / "tokenizer.json"]
    found = [file for file in files[: 2 if checkpoint.name.startswith("step_") else 1] if file.exists()]
    if not found:
        raise ValueError(f"{checkpoint} holds no tokenizer.json; put the one that the model was trained with beside it")
    return found[0]


def published_stops(config: ModelConfig, checkpoint: Path) -> tuple[int, ...]:
    """End-of-sequence ids: those of generation_config.json, where several may stand, else the config's."""
    stops: int | list[int] | None = config.eos_token_id
    file = checkpoint / "generation_config.json"
    if file.exists():
        stops = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id", stops)
    return () if stops is None else (stops,) if isinstance(stops, int) else tuple(stops)


def copy_tokenizer(checkpoint: Path, out: Path) -> None:
    """Copy the tokenizer files beside a checkpoint, or its run's tokenizer with Fathom's chat template, into `out`."""
    for name in FILES:
        if (checkpoint / name).exists():
            shutil.copyfile(checkpoint / name, out / name)
    of_run = checkpoint.parent.parent  # RUN/STAGE/step_000050
    if not (out / "tokenizer.json").exists() and checkpoint.name.startswith("step_"):
        for name in FILES:
            if (of_run / name).exists():
                shutil.copyfile(of_run / name, out / name)
    if (out / "tokenizer.json").exists() and not (out / "tokenizer_config.json").exists() and _is_ours(out):
        write_tokenizer_config(out, BOS, EOS, PAD, CHAT_TEMPLATE)


def write_tokenizer_config(
    directory: Path, bos: str | None, eos: str | None, pad: str | None, chat_template: str | None
) -> None:
    """Name the special tokens of the tokenizer.json in `directory` and its chat template, where there are any."""
    fields = {"bos_token": bos, "eos_token": eos, "pad_token": pad, "chat_template": chat_template}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    config |= {name: value for name, value in fields.items() if value is not None}
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _is_ours(directory: Path) -> bool:
    tokenizer = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    return {BOS, USER, ASSISTANT} <= {token["content"] for token in tokenizer.get("added_tokens", ())}
