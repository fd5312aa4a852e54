"""Points of how tokens are drawn: stop strings, seeds, log-probabilities, biases."""

import math
from concurrent.futures import ThreadPoolExecutor

from fathom.conform.asked import Asked, Fields, NotHeld, NotOffered, require, said

LETTER = "a"  # one token nearly everywhere


def stop(server: Asked) -> str:
    """A stop string ends the text in front of itself, wherever tokens are cut."""
    whole = said(server.whole)
    text = whole.text
    if len(text) < 4:
        raise NotOffered(f"the answer {text!r} is too short to be stopped")
    begin = len(whole.thinking) if len(whole.content) >= 4 else 0
    middle = begin + (len(text) - begin) // 2
    wanted = text[middle : middle + 3]
    place = text.find(wanted)
    answer = said(server.offered(stop=[wanted]))
    require(wanted not in answer.text, f"the text holds its stop string {wanted!r}")
    require(answer.finish == "stop", f"finish_reason is {answer.finish!r}")
    require(answer.text.strip() == text[:place].strip(), f"...{answer.text[-30:]!r} in front of {wanted!r}")
    return f"{wanted!r} at {place} of {len(text)} characters"


def seed(server: Asked) -> str:
    """A seed gives the same text alone and among others."""

    def draw(number: int) -> str:
        return said(server.offered(seed=number, temperature=1.0, max_tokens=min(32, server.max_tokens))).text

    alone = draw(7)
    with ThreadPoolExecutor(5) as pool:
        crowd = list(pool.map(draw, (7, 1, 7, 2, 3)))
    require(
        crowd[0] == crowd[2] == alone, f"{alone[:30]!r} alone, {crowd[0][:30]!r} and {crowd[2][:30]!r} among others"
    )
    return f"equal 3 times; {len(set(crowd))} texts of 4 seeds"


def logprobs(server: Asked) -> str:
    """Log-probabilities stand by every token of the text; the likeliest sum to no more than 1."""
    answer = server.offered(logprobs=True, top_logprobs=2)
    shown = (answer["choices"][0].get("logprobs") or {}).get("content")
    require(shown, "none came, and nothing was refused")
    assert shown is not None
    require(all(entry["logprob"] <= 1e-6 for entry in shown), "a log-probability is above 0")
    sums = [math.fsum(math.exp(top["logprob"]) for top in entry["top_logprobs"]) for entry in shown]
    require(max(sums) <= 1.001, f"the likeliest tokens sum to {max(sums):.3f}")
    most = max(len(entry["top_logprobs"]) for entry in shown)
    require(most == 2, f"{most} of 2 likeliest tokens")
    drawn = answer["usage"]["completion_tokens"]
    require(abs(len(shown) - drawn) <= 1, f"{len(shown)} entries for {drawn} tokens")  # a stop token may be left out
    if all(entry.get("bytes") is not None for entry in shown):
        text = bytes(byte for entry in shown for byte in entry["bytes"]).decode(errors="replace")
    else:
        text = "".join(entry["token"] for entry in shown)
    content = said(answer).content.strip()
    require(content in text or "\ufffd" in text, f"the tokens {text[-40:]!r} are not the text {content[-40:]!r}")
    return f"{len(shown)} tokens, likeliest 2 sum to at most {max(sums):.3f}"


def bias(server: Asked) -> str:
    """A bias of 100 draws a token alone, one of -100 never."""
    ids = _ids(server, LETTER)
    chosen = ids[0] if len(ids) == 1 else 100
    text = said(server.offered(logit_bias={str(chosen): 100}, max_tokens=4)).text
    unit = LETTER if len(ids) == 1 else text[: len(text) // 4]
    if not text.strip() or len(text) % 4:
        raise NotOffered(f"token {chosen} cannot be told from the text {text!r}")
    require(text == unit * 4, f"four tokens biased to {unit!r} read {text!r}")
    banned = _ids(server, said(server.whole).text)[:1]
    if not banned:
        return "100 draws it alone; -100 was not tried, as no route gives ids"
    without = said(server.chat(logit_bias={str(banned[0]): -100})).text
    require(_ids(server, without)[:1] != banned, f"the text begins with token {banned[0]}, which had -100: {without!r}")
    return "100 draws it alone, -100 never"


def _ids(server: Asked, text: str) -> list[int]:
    """Ids of a text where the server tells them."""
    body: Fields = {"model": server.model, "prompt": text, "add_special_tokens": False}
    response = server.http.post(f"{server.root}/tokenize", json=body)
    try:
        return list(response.json()["tokens"]) if response.status_code == 200 else []
    except (ValueError, LookupError) as error:
        raise NotHeld(f"/tokenize answers {response.text[:60]!r}") from error
