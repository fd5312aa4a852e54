"""What is kept of every token besides its log-probability, for the rows that ask."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fathom.infer.rows import Rows
from fathom.infer.tenant import Trace


class Traces:
    """Tables beside the drawn tokens. They take no room and no time until a request asks for what they hold."""

    def __init__(self, rows: Rows, device: torch.device) -> None:
        self._rows = rows
        self._entropy = torch.zeros(rows.capacity, 0, device=device)
        self._whole = torch.zeros(3, rows.capacity, 0, dtype=torch.int64, device=device)  # version, drafted, accepted
        self._tokens = torch.zeros(rows.capacity, 0, 0, dtype=torch.int64, device=device)  # (rows, width, likeliest)
        self._logprobs = torch.zeros(rows.capacity, 0, 0, device=device)

    def reserve(self, max_tokens: int, likeliest: int) -> None:
        """Make room for so many tokens a row, and for so many likeliest in place of each."""
        more = max(0, max_tokens + 1 - self._entropy.shape[1])  # one for what is drawn behind a row's last token
        others = max(0, likeliest - self._tokens.shape[2])
        self._entropy, self._whole = F.pad(self._entropy, (0, more)), F.pad(self._whole, (0, more))
        self._tokens, self._logprobs = (F.pad(t, (0, others, 0, more)) for t in (self._tokens, self._logprobs))

    def note(self, logits: Float[Tensor, "N T V"], places: Int[Tensor, "N T"], first: int, version: int) -> None:
        """Keep what `logits` say of the tokens that rows first .. count - 1 put at `places`."""
        rows, span = self._rows, slice(first, self._rows.count)
        temperature = rows.laws(first)[0]
        scale = temperature.masked_fill(temperature == 0, 1.0).view(-1, 1, 1)
        logprobs = (logits / scale).log_softmax(-1)
        column = (places - rows.fields(first).start.unsqueeze(1)).clamp(max=self._entropy.shape[1] - 1)
        self._entropy[span].scatter_(1, column, -(logprobs.exp() * logprobs).sum(-1))
        self._whole[0, span].scatter_(1, column, version)
        self._whole[1:, span].scatter_(2, column.expand(2, -1, -1), 0)
        if likeliest := rows.traced - 1:
            best, tokens = logprobs.topk(likeliest)
            columns = column.unsqueeze(2).expand_as(tokens)
            self._tokens[span].scatter_(1, columns, tokens)
            self._logprobs[span].scatter_(1, columns, best)

    def judge(self, column: Int[Tensor, " N"], checked: Bool[Tensor, " N"], kept: Bool[Tensor, " N"]) -> None:
        """Note whether the token in a column of every active row met a draft, and was it."""
        column = column.clamp(max=self._entropy.shape[1] - 1)
        verdicts = torch.stack((checked, kept)).long().unsqueeze(2)
        column = column.clamp(max=self._entropy.shape[1] - 1)  # rows without traces may be longer
        self._whole[1:, : self._rows.count].scatter_(2, column.view(1, -1, 1).expand_as(verdicts), verdicts)

    def read(self, index: Int[Tensor, " K"], width: int) -> list[Trace]:
        """What was kept of the last `width` tokens of rows `index`; rows that drew fewer repeat their first."""
        columns, rows = self._rows.columns(index, width), index.unsqueeze(1)
        columns.clamp_(max=self._entropy.shape[1] - 1)  # rows without traces may be longer
        entropy = self._entropy[rows, columns].tolist()
        version, drafted, accepted = self._whole[:, rows, columns].tolist()
        tokens, logprobs = self._tokens[rows, columns].tolist(), self._logprobs[rows, columns].tolist()
        traces: list[Trace] = []
        for k, row in enumerate(index.tolist()):
            likeliest = self._rows.tenants[row].request.top_logprobs
            pairs = zip(tokens[k], logprobs[k], strict=True)
            top = [list(zip(ids[:likeliest], values[:likeliest], strict=True)) for ids, values in pairs]
            traces.append(Trace(entropy[k], version[k], [*map(bool, drafted[k])], [*map(bool, accepted[k])], top))
        return traces

    def save(self, row: int) -> tuple[Tensor, ...]:
        """What was kept of a row."""
        kept = (self._entropy[row], self._whole[:, row], self._tokens[row], self._logprobs[row])
        return tuple(each.clone() for each in kept)

    def restore(self, row: int, saved: tuple[Tensor, ...]) -> None:
        """Keep again what `save` gave; tables may have grown since."""
        entropy, whole, tokens, logprobs = saved
        self._entropy[row, : len(entropy)] = entropy
        self._whole[:, row, : whole.shape[1]] = whole
        for table, kept in ((self._tokens, tokens), (self._logprobs, logprobs)):
            table[row, : kept.shape[0], : kept.shape[1]] = kept

    def move(self, source: Int[Tensor, " M"], target: Int[Tensor, " M"]) -> None:
        """Rows `source` have moved to `target`."""
        for table in (self._entropy, self._tokens, self._logprobs):
            table[target] = table[source]
        self._whole[:, target] = self._whole[:, source]
