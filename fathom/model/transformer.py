"""The whole model. Training and inference call the same module; the cache is an argument."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from fathom.config import ModelConfig
from fathom.kernels import gemm
from fathom.model.block import Block
from fathom.model.cache import Slots
from fathom.model.gqa import GQA
from fathom.model.linear import RMSNorm, linear
from fathom.model.mla import MLA
from fathom.model.moe import MoE, Router
from fathom.model.mtp import MTPModule
from fathom.model.rope import Rotation, rope_frequencies, rope_magnitude, rotation
from fathom.model.routing import RoutingTrace
from fathom.parallel.mesh import ALONE, Axis


def constant_of(module: nn.Module, name: str) -> float | None:
    """The value at which all of a module's parameter starts; none where it is drawn."""
    if isinstance(module, RMSNorm):
        return 1.0
    return 0.0 if name == "bias" else None


class Transformer(nn.Module):
    """Token ids to normalised hidden states; `head_weight` turns those into logits."""

    frequencies: Tensor
    context: Axis = ALONE  # over which rows are spread

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        # not nn.Embedding(...): drawing its weights, only to overwrite them, takes a second on the meta device
        self.embedding = nn.Embedding.from_pretrained(torch.empty(config.vocab_size, config.hidden_size), freeze=False)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        if not config.tie_word_embeddings:
            self.head = linear(config.hidden_size, config.vocab_size)
        self.mtp = nn.ModuleList(MTPModule(config, depth) for depth in range(config.num_nextn_predict_layers))
        frequencies = rope_frequencies(config.rope, config.attention.rope_dim)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.magnitude = rope_magnitude(config.rope)

    @property
    def head_weight(self) -> Float[Tensor, "V D"]:
        """The output head, which may be the embedding itself."""
        return self.embedding.weight if self.config.tie_word_embeddings else self.head.weight

    def initialise(self, generator: torch.Generator) -> None:
        """Draw every matrix from N(0, initializer_range) (V3 4.2); norms start at one, biases at zero."""
        for module in self.modules():
            for name, parameter in module.named_parameters(recurse=False):
                constant = constant_of(module, name)
                if constant is None:
                    parameter.data.normal_(0.0, self.config.initializer_range, generator=generator)
                else:
                    parameter.data.fill_(constant)
            if isinstance(module, Router):
                module.selection_bias.zero_()

    def spread_rows(self, context: Axis) -> None:
        """Let every process of `context` hold two pieces of each row (`fathom.parallel.context`).

        Tokens, positions and the queries of masks are then those of the places held; masks have the whole row's keys.
        """
        self.context = context
        for module in self.modules():
            if isinstance(module, (MLA, GQA, MoE)):
                module.context = context

    def forward(
        self,
        tokens: Int[Tensor, "B T"],
        positions: Int[Tensor, "P T"] | None = None,
        mask: Bool[Tensor, "B T S"] | None = None,
        slots: Slots | None = None,
        trace: RoutingTrace | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Hidden states behind the final norm.

        Without `slots` attention is causal within the row, or as `mask` says. With `slots` the tokens are
        written to a cache and see what it holds. `trace` collects loads and balance losses.
        """
        turn = self.turn(tokens, positions, slots)
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x, turn, mask, slots, trace)
        return self.norm(x)

    def predict_further(
        self,
        depth: int,
        hidden: Float[Tensor, "B T D"],
        tokens: Int[Tensor, "B T"],
        positions: Int[Tensor, "P T"] | None = None,
        mask: Bool[Tensor, "B T S"] | None = None,
        slots: Slots | None = None,
        trace: RoutingTrace | None = None,
    ) -> Float[Tensor, "B T D"]:
        """MTP module `depth` (0-based): from the state at i and token i + depth + 1, the state that predicts the next.

        `tokens` are those further tokens, aligned with `hidden`.
        """
        turn = self.turn(tokens, positions, slots)
        return self.mtp[depth](hidden, self.embed(tokens), turn, mask, slots, trace)

    def logits(self, hidden: Float[Tensor, "*N D"]) -> Float[Tensor, "*N V"]:
        """Scores of every next token in float32."""
        return gemm.linear(hidden, self.head_weight.to(hidden.dtype)).float()

    def embed(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """What the first layer reads, in the precision of the layers: a GPU's residual stream is no wider than that."""
        x = self.embedding(tokens)
        return x.to(torch.get_autocast_dtype("cuda")) if x.is_cuda and torch.is_autocast_enabled("cuda") else x

    def turn(self, tokens: Tensor, positions: Tensor | None, slots: Slots | None) -> Rotation:
        """The rotation of these tokens' places."""
        if slots is not None:
            positions = slots.positions
        elif positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device).unsqueeze(0)
        return rotation(self.frequencies, positions, self.magnitude)
