"""Text: where it comes from, how it is cut into tokens and mixed."""

from dataclasses import dataclass

from fathom.config.checks import require_positive, require_unit_interval


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The tokenizer and the pretraining mixture."""

    sources: tuple[str, ...] = (
        "sample",
    )  # files (.txt .jsonl .parquet), directories of source code, hf:NAME, or "sample"
    vocab_size: int = 1536  # entries, integers 0-999 and special tokens included
    arithmetic_share: float = 0.5  # share of pretraining tokens that are generated worked arithmetic
    arithmetic_max: int = 99  # largest number in most of it
    arithmetic_documents: int = 40_000  # worked documents to generate
    expression_share: float = 0.25  # share of pretraining tokens that are expressions in question-and-answer form
    expression_documents: int = 10_000  # of those to generate
    fim_rate: float = 0.1  # share of text documents reordered prefix-suffix-middle (V3 4.1)
    validation_share: float = 0.02  # share of documents kept for the validation loss
    mask_documents: bool = False  # hide a packed row's earlier documents; V3 4.1 does not
    prompt: str = ""  # what stands around {question} for a published model that has no template of ours; own words

    def __post_init__(self) -> None:
        require_positive("text", vocab_size=self.vocab_size)
        require_unit_interval(
            "text",
            arithmetic_share=self.arithmetic_share,
            expression_share=self.expression_share,
            fim_rate=self.fim_rate,
            validation_share=self.validation_share,
        )
        if self.arithmetic_share + self.expression_share > 1:
            raise ValueError(
                f"text.arithmetic_share={self.arithmetic_share} and expression_share={self.expression_share} "
                "sum to more than 1; lower one of them"
            )
        if not self.sources:
            raise ValueError('text.sources is empty; name at least one file or directory, or "sample"')
