"""Tool calls in the form that DeepSeek publishes with its chat templates, read while they come.

V3 and R1 write, and their templates replay,

    <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME
    ```json
    {ARGUMENTS}
    ```<｜tool▁call▁end｜><｜tool▁calls▁end｜>

and V3.1 leaves out the word `function`, the line ends and the fence: NAME<｜tool▁sep｜>{ARGUMENTS}.
"""

import json
import secrets
from dataclasses import dataclass

CALLS_BEGIN, CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL_BEGIN, CALL_END, SEPARATOR = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"


@dataclass(frozen=True)
class CallDelta:
    """One call, whole: clients join the arguments of one index, and one part is a join too."""

    index: int
    id: str
    name: str
    arguments: str  # JSON


class CallReader:
    """Takes calls out of an answer. A call is handed out once it is whole and its arguments are JSON.

    What has the form of a call and is none, as its arguments do not parse, stays in the answer as text.
    """

    def __init__(self) -> None:
        self.count = 0
        self._held = ""
        self._inside = False

    def feed(self, text: str, ends: bool = False) -> tuple[str, list[CallDelta]]:
        """What `text` adds to the answer, and the calls it completes; with `ends` nothing is held back."""
        self._held += text
        answer, calls = "", list[CallDelta]()
        while True:
            if not self._inside:
                before, begun, after = self._held.partition(CALLS_BEGIN)
                if not begun:
                    keep = 0 if ends else _overlap(before, CALLS_BEGIN)
                    answer, self._held = answer + before[: len(before) - keep], before[len(before) - keep :]
                    return answer, calls
                answer, self._held, self._inside = answer + before, after, True
            head, closed, after = self._held.partition(CALL_END)
            outer, ended, behind = self._held.partition(CALLS_END)
            if closed and (not ended or len(head) < len(outer)):
                self._held = after
                call = self._read(head)
                answer, calls = (answer, [*calls, call]) if call else (answer + head + CALL_END, calls)
            elif ended:
                answer, self._held, self._inside = answer + outer.strip(), behind, False
            else:
                if ends:  # cut off: text, so that nothing the model wrote is lost
                    answer, self._held = answer + self._held, ""
                return answer, calls

    def _read(self, text: str) -> CallDelta | None:
        head, found, arguments = text.strip().removeprefix(CALL_BEGIN).partition(SEPARATOR)
        name, fenced, block = arguments.partition("```json")
        if fenced:  # V3 and R1: the head is the kind
            head, arguments = name, block.strip().removesuffix("```")
        try:
            fields = json.loads(arguments)
        except ValueError:
            return None
        if not found or not head.strip() or not isinstance(fields, dict):
            return None
        call = CallDelta(self.count, f"call_{secrets.token_hex(12)}", head.strip(), arguments.strip())
        self.count += 1
        return call


def _overlap(text: str, tag: str) -> int:
    """The length of the longest proper beginning of `tag` that `text` ends with."""
    longest = min(len(tag) - 1, len(text))
    return next((size for size in range(longest, 0, -1) if text.endswith(tag[:size])), 0)
