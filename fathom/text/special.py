"""The special tokens, in the order of their ids (0 to 11)."""

PAD = "<|pad|>"
BOS = "<|bos|>"
EOS = "<|eos|>"
USER = "<|user|>"
ASSISTANT = "<|assistant|>"
THINK = "<think>"
THINK_END = "</think>"
ANSWER = "<answer>"
ANSWER_END = "</answer>"
FIM_BEGIN = "<|fim_begin|>"
FIM_HOLE = "<|fim_hole|>"
FIM_END = "<|fim_end|>"

SPECIAL_TOKENS = (
    PAD,
    BOS,
    EOS,
    USER,
    ASSISTANT,
    THINK,
    THINK_END,
    ANSWER,
    ANSWER_END,
    FIM_BEGIN,
    FIM_HOLE,
    FIM_END,
)
