from fathom.text.corpus import SAMPLE
from fathom.text.sections import LONGEST, cut, split_text


def test_a_play_is_cut_at_its_scenes():
    lines = "Ber.\nWho's there?\n\n" * 20
    play = f"ACT I.\n\nScene I. Elsinore.\n\n{lines}Scene II. A room.\n\n{lines}ACT II.\n\nScene I. Again.\n\n{lines}"
    documents = split_text(play)
    openings = ["ACT I.\n\nScene I. Elsinore.", "Scene II. A room.", "ACT II.\n\nScene I. Again."]
    assert [document.partition("\n\nBer.")[0] for document in documents] == openings
    assert all(document.endswith("Who's there?") for document in documents)


def test_each_sonnet_is_a_document():
    documents = split_text((SAMPLE / "sonnets.txt").read_text())
    assert len(documents) == 154
    assert documents[17].startswith("XVIII\n\nShall I compare thee to a summer's day?")


def test_cut_prefers_paragraphs_then_lines_then_words():
    assert cut("aa\n\nbb\n\ncc", 6) == ["aa\n\nbb", "cc"]
    assert cut("aaa\nbbb\nccc", 7) == ["aaa\nbbb", "ccc"]
    assert cut("aaa bbb ccc", 7) == ["aaa bbb", "ccc"]
    assert cut("aaaaaaaaaa", 4) == ["aaaa", "aaaa", "aa"]


def test_nothing_is_lost_and_nothing_is_too_long():
    text = (SAMPLE / "hamlet.txt").read_text()
    documents = split_text(text)
    assert max(map(len, documents)) <= LONGEST
    assert "".join("".join(documents).split()) == "".join(text.split())


def test_blank_text_has_no_documents():
    assert split_text(" \n\n ") == []
