"""Load on a server, beside what the memory of its machine allows."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from fathom.bench.latency import summarize
from fathom.bench.load import Fields, file_bodies, random_bodies, run_load
from fathom.bench.load_options import LoadOptions
from fathom.bench.rounds import describe_conditions
from fathom.config import ModelConfig
from fathom.config.load import from_json
from fathom.config.published import from_published
from fathom.plan.count import decode_flops_per_token
from fathom.plan.hardware import parse_devices
from fathom.plan.serving import WEIGHT_BYTES, serving_dtype

log = logging.getLogger(__name__)
PROBES = (8, 72)  # words of the two prompts that tell how many tokens a word has
LOCAL = ("127.0.0.1", "::1", "localhost")


def main(url: str, options: LoadOptions) -> dict[str, Any]:
    """Ask, and set what came beside the limit.

    Raises OSError where nobody answers, ValueError where the server has no model or refuses what is asked.
    """
    base = url.rstrip("/")
    base = base if urlsplit(base).path else f"{base}/v1"
    headers = {"authorization": f"Bearer {options.key}"} if options.key else {}
    with httpx.Client(base_url=base, headers=headers, timeout=options.timeout_s, trust_env=False) as http:
        try:
            model = options.model or _get(http, "/models")["data"][0]["id"]
            told = _told(http)
            config = read_model(options.config) if options.config else told.get("config")
            bodies = _bodies(http, options, model)
        except httpx.HTTPError as error:
            raise OSError(f"nobody answers at {base} ({error})") from error
        except LookupError as error:
            raise ValueError(f"{base}/models lists no model; give --model NAME") from error
    roof = find_roof(options, config, told, urlsplit(base).hostname or "")
    if options.warm_up:
        log.info("warming up")
        run_load(base, _warm(options), bodies[: options.warm_up])
    log.info("asking %d times", options.requests)
    shares = run_load(base, options, bodies[options.warm_up :])
    found = summarize(shares, options)
    return {
        "bench": "serve",
        "url": base,
        "model": model,
        "arrivals": {"rate": options.rate} if options.rate else {"clients": options.clients},
        "stream": options.stream,
        "seed": options.seed,
        **found,
        "limit": describe_limit(config, roof, found),
        **describe_conditions(),
    }


def _warm(options: LoadOptions) -> LoadOptions:
    return replace(options, rate=0.0, processes=1, clients=options.warm_up, requests=options.warm_up)


def _get(http: httpx.Client, path: str) -> Any:
    response = http.get(path)
    if response.status_code != 200:
        raise ValueError(f"{http.base_url}{path.lstrip('/')} answers with {response.status_code}; is --key right?")
    return response.json()


def _bodies(http: httpx.Client, options: LoadOptions, model: str) -> list[Fields]:
    count = options.warm_up + options.requests
    if options.file:
        return file_bodies(options, model, count)
    counted = [_prompt_tokens(http, model, "417 " * (words - 1) + "417") for words in PROBES]
    per_word = (counted[1] - counted[0]) / (PROBES[1] - PROBES[0])
    if per_word <= 0:
        raise ValueError(
            f"the server counts {counted[0]} tokens in a short prompt and {counted[1]} in a longer; --file"
        )
    fixed = counted[0] - per_word * PROBES[0]
    return random_bodies(options, model, fixed, per_word, count)


def _prompt_tokens(http: httpx.Client, model: str, text: str) -> int:
    body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 1}
    response = http.post("/chat/completions", json=body)
    if response.status_code != 200:
        raise ValueError(f"the server refuses a plain request with {response.status_code}: {response.text[:200]}")
    return int(response.json()["usage"]["prompt_tokens"])


# ---- the limit ------------------------------------------------------------------------------------------------------


def _told(http: httpx.Client) -> dict[str, Any]:
    """What a server of Fathom says of its model: `config`, `dtype` and `device`; nothing where it is another's."""
    response = http.get(str(http.base_url).rstrip("/").removesuffix("/v1") + "/version")
    try:
        said = response.json() if response.status_code == 200 else {}
        return said | {"config": from_published(said["config"])}
    except (ValueError, LookupError, TypeError):
        return {}


def read_model(path: Path) -> ModelConfig:
    """The model of a run, a checkpoint or a config.json."""
    file = path / "config.json" if path.is_dir() else path
    if not file.exists():
        raise ValueError(f"{file} does not exist; name a config.json, its directory, or a run")
    text = file.read_text(encoding="utf-8")
    try:
        values = json.loads(text)
        return from_json(text).model if "model" in values else from_published(values)
    except ValueError as error:  # broken JSON too
        raise ValueError(f"{file}: {error}") from error


def find_roof(options: LoadOptions, config: ModelConfig | None, told: dict[str, Any], host: str) -> dict[str, Any]:
    """Bandwidth, arithmetic and sizes of an element, with where they come from; `unknown` where nobody says."""
    if config is None:
        return {"unknown": "which model it is; give --config"}
    if options.hardware:
        devices = parse_devices(options.hardware)
        dtype = told.get("dtype") or serving_dtype(devices.hardware)
        flops = {"fp8": devices.hardware.fp8_flops, "bfloat16": devices.hardware.bf16_flops}.get(dtype)
        return {
            "source": f"data sheet of {devices}",
            "bandwidth": devices.count * devices.hardware.memory_bandwidth,
            "flops": devices.count * (flops or devices.hardware.peak_flops),
            "sizes": (WEIGHT_BYTES[dtype], 4 if dtype == "float32" else 2),
        }
    if told.get("device") != "cpu" or host not in LOCAL:
        return {"unknown": "what it runs on; give --hardware, such as 8xH200"}
    return _measured(config)


def _measured(config: ModelConfig) -> dict[str, Any]:
    """This CPU, read and multiplied on by one pass over as many bytes as the model has."""
    import torch  # which the load itself does without

    from fathom.bench.probe import product_flops, read_bandwidth
    from fathom.plan.count import main_parameters

    device = torch.device("cpu")
    log.info("measuring this machine's memory")
    return {
        "source": "measured here before the load",
        "bandwidth": read_bandwidth(4 * main_parameters(config), device),
        "flops": product_flops(torch.float32, device),
        "sizes": (4, 4),
    }


def describe_limit(config: ModelConfig | None, roof: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """The most tokens a second that memory and arithmetic allow so many rows of such length, and the share reached."""
    if config is None or "unknown" in roof or not found["answered"]:
        return {"unknown": roof.get("unknown", "no request was answered")}
    from fathom.bench.step import step_bytes

    rows = max(1, round(found["mean_inside"]))
    context = found["mean_prompt_tokens"] + found["mean_tokens"] / 2
    moved = step_bytes(config, rows, context, *roof["sizes"]).total
    seconds = {
        "memory": moved / roof["bandwidth"],
        "compute": rows * decode_flops_per_token(config, round(context)) / roof["flops"],
    }
    wall = max(seconds, key=seconds.__getitem__)
    limit = rows / seconds[wall]
    return {
        "tokens_per_s": round(limit, 1),
        "share": round(found["tokens_per_s"] / limit, 4),
        "wall": wall,
        "rows": rows,
        "context": round(context, 1),
        "bytes_per_token": round(moved / rows),
        "bandwidth_gb_s": round(roof["bandwidth"] / 1e9, 2),
        "source": roof["source"],
    }
