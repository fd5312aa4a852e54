import pytest

from fathom.text.tokenizer import MINIMUM_VOCABULARY, Tokenizer

TEXTS = ["the cat sat on the mat, and the dog sat there.\n", "<think> 12 cats and 7 dogs </think>\n"] * 3


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, MINIMUM_VOCABULARY + 20)
