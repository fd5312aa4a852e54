"""The sampler's weights after every update, and the proof that they are the trained ones on every process."""

import torch
from torch import Tensor

from fathom.model import Transformer
from fathom.model.parallelize import gathered, let_go, take_whole
from fathom.parallel.world import World

PRIME = (1 << 61) - 1
PROBE = 16  # tokens whose logits are compared
# how far logits of whole weights may lie from those of the same weights in parts, as a share of the largest
EXACT, ROUNDED = 1e-4, 0.1


class Sampler:
    """The model that samples: the trained one itself, or a copy of it.

    There is one where the trained model is spread, whole; and one where its float32 weights are multiplied in BF16, in
    BF16, so that decoding reads half of the bytes and the products take the same numbers on both sides.
    """

    def __init__(self, trained: Transformer, world: World, dtype: torch.dtype) -> None:
        self.trained, self.world, self.dtype = trained, world, dtype
        self.model = rounded(gathered(trained), dtype)

    def refresh(self) -> None:
        """Take up what was trained since; every process must ask.

        Raises RuntimeError where processes would sample from different weights, or from others than are trained.
        """
        if self.model is self.trained and self.world.size == 1:
            return
        if self.model is not self.trained:
            take_whole(self.model, self.trained)
        prints = self.world.gather(fingerprint(self.model))
        if len(set(prints)) > 1:
            odd = [rank for rank, found in enumerate(prints) if found != prints[0]]
            raise RuntimeError(
                f"processes {odd} hold other weights than the first one; training stops, because they would sample "
                "from another policy: go on from the last checkpoint with --resume"
            )
        if self.model is not self.trained:
            self.compare_logits()

    @torch.no_grad()
    def compare_logits(self) -> None:
        """Raise RuntimeError unless a probe's logits are those of the trained weights; every process must ask."""
        device, vocabulary = self.world.device, self.model.config.vocab_size
        tokens = (torch.arange(PROBE, device=device) * 7 % vocabulary).unsqueeze(0)
        with torch.autocast(device.type, self.dtype, enabled=self.dtype != torch.float32):
            wanted = self.trained.logits(self.trained(tokens))
            found = self.model.logits(self.model(tokens))
        let_go(self.trained)
        rounded = self.dtype != torch.float32 or self.world.layout.fp8_dispatch
        apart = float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-6))
        worst = max(float(str(each)) for each in self.world.gather(apart))
        if not worst <= (ROUNDED if rounded else EXACT):
            raise RuntimeError(
                f"the sampler's logits lie {worst:.2g} of the largest one away from those of the trained weights; "
                "training stops, because it would learn from another policy: go on from the last checkpoint with "
                "--resume"
            )


@torch.no_grad()
def rounded(model: Transformer, dtype: torch.dtype) -> Transformer:
    """A copy whose parameters are of `dtype`, or the model itself where they are; selection biases stay as they are."""
    if model.embedding.weight.dtype == dtype:
        return model
    with torch.device("meta"):
        copy = Transformer(model.config)
    biases = {name for name, _ in model.named_buffers()}
    weights = model.state_dict().items()
    copy.load_state_dict({name: t.clone() if name in biases else t.to(dtype) for name, t in weights}, assign=True)
    copy.frequencies = model.frequencies
    return copy


@torch.no_grad()
def fingerprint(model: Transformer) -> int:
    """A number that changes, but for one chance in 10^18, where any bit of any weight or bias does."""
    total = 0
    for tensor in model.state_dict().values():
        words = tensor.contiguous().view(torch.int16 if tensor.element_size() == 2 else torch.int32).flatten().long()
        places = torch.arange(1, len(words) + 1, device=words.device)
        total = (total * 1_000_003 + int((words * _mixed(places)).sum())) % PRIME
    return total


def _mixed(places: Tensor) -> Tensor:
    """Odd numbers that differ from place to place."""
    return (places * 2_654_435_761 % (1 << 31)) * 2 + 1


def require_whole_layers(world: World) -> None:
    """Refuse layouts in which nobody sees whole answers or all layers at once."""
    for name, ways in (("pipeline", world.layout.pipeline), ("context", world.layout.context)):
        if ways > 1:
            raise ValueError(
                f"parallel.{name}={ways} spreads {'layers' if name == 'pipeline' else 'rows'}, which GRPO does not; "
                f"choose parallel.{name}=1 and spread the training state with parallel.shard or parallel.expert"
            )


def require_no_critic(world: World) -> None:
    """Refuse a critic beside a policy in parts: it is a second model of the same size, and is trained whole."""
    for name, ways in (("shard", world.layout.shard), ("expert", world.layout.expert)):
        if ways > 1:
            raise ValueError(
                f"an advantage of gae trains a critic, which parallel.{name}={ways} does not spread; choose another "
                f"grpo.objective.advantage, or parallel.{name}=1"
            )
