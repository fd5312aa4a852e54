"""What is measured: a DeepSeek-V3 model of 0.7 M parameters, small enough for two laptop cores."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from jaxtyping import Int
from torch import Tensor

from fathom.checkpoint.hub import save_published
from fathom.config import ModelConfig, MoEConfig
from fathom.model import Transformer

# No MTP module, and no balance loss: the peers have neither, and both sides are to do the same work.
SHAPE = ModelConfig(
    vocab_size=4096,
    hidden_size=64,
    num_hidden_layers=2,
    num_nextn_predict_layers=0,
    initializer_range=0.1,  # spreads the logits, so that greedy texts do not hang on the last bit
    moe=MoEConfig(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=64, seq_aux_alpha=0.0),
)


@contextmanager
def published(config: ModelConfig) -> Generator[Path]:
    """A directory with fresh weights under the published names, which every side loads; deleted behind the block."""
    model = Transformer(config)
    model.initialise(torch.Generator().manual_seed(0))
    with TemporaryDirectory(prefix="fathom-bench-") as folder:
        save_published(model, Path(folder))
        yield Path(folder)


def random_tokens(vocab_size: int, rows: int, length: int) -> Int[Tensor, "B T"]:
    """The same random tokens on every side."""
    return torch.randint(0, vocab_size, (rows, length), generator=torch.Generator().manual_seed(1))


def describe_shape(config: ModelConfig) -> dict[str, int]:
    """The dims that matter, and the number of parameters."""
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in Transformer(config).parameters())
    return {
        "parameters": parameters,
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "experts": config.moe.n_routed_experts,
        "experts_per_token": config.moe.num_experts_per_tok,
        "vocab_size": config.vocab_size,
    }
