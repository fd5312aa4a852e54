"""The command `fathom`: one verb a job, all on one config, each imported when called."""

import difflib
import errno
import inspect
import json
import logging
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional, arg

from fathom import __version__, demo
from fathom.bench.load_options import LoadOptions
from fathom.config import Config, SamplingConfig
from fathom.config.load import load_config, read_toml
from fathom.eval.exam import Exam
from fathom.plan.question import Question
from fathom.presets import preset
from fathom.runs import Run
from fathom.serve.options import ServeOptions

# Fields of a config are flags of their own: --grpo.steps, --model.attention.kind.
Fields = Annotated[Config, arg(name="")]
Sampling = Annotated[SamplingConfig, arg(name="")]
Planned = Annotated[Question, arg(name="")]
Asked = Annotated[Exam, arg(name="")]
Serving = Annotated[ServeOptions, arg(name="")]
Load = Annotated[LoadOptions, arg(name="")]
LOAD = LoadOptions()
Toml = Annotated[Path | None, arg(name="config", help="TOML file; its tables are the sections below, and flags win")]
Out = Annotated[Path | None, arg(help="run directory, begun or to begin (runs/PRESET unless given)")]
Resume = Annotated[bool, arg(help="continue from the newest checkpoint of this stage")]
RunDir = Annotated[Positional[Path], arg(metavar="RUN", help="directory of a run")]
OutDir = Annotated[Positional[Path], arg(metavar="OUT_DIR", help="directory to write, empty or to create")]


# ---- verbs ----------------------------------------------------------------------------------------------------------


def run(
    name: Annotated[Positional[str], arg(metavar="PRESET", help="laptop, laptop-zero, laptop-mul, laptop-four")],
    config: Fields,
    toml: Toml = None,
    out: Out = None,
) -> None:
    """Run the whole chain, from raw text to a reasoning model and its report.

    Tokenizer, pretraining (V3 4), cold-start fine-tuning (R1 2.3.1), GRPO (R1 2.2), evaluation before and after, a
    check of MTP speculation, and report.html. A finished stage whose inputs are unchanged is skipped and an
    interrupted one continues, so the same command, given again, goes on.

    Example: fathom run laptop --seed 1 --out runs/seed1
    """
    from fathom.chain import laptop

    laptop.run(config, out or _default_out(config))


def plan(
    config: Fields,
    question: Planned,
    toml: Toml = None,
    out: Annotated[Path | None, arg(help="run directory that keeps the prediction, for --compare")] = None,
) -> None:
    """Work out what a run needs and costs, before anyone rents a GPU.

    Parameters, operations, cache, memory, time, dollars and energy of a preset or of any published config.json, and
    how to spread the run over devices: paper arithmetic, no GPU and no torch. What the sum leaves out is named, and
    the figures of V3 and V2 stand beside those that their authors print.

    Example: fathom plan --preset v3

    Example: fathom plan --preset small --gpus 2xH200 --budget 30

    Example: fathom plan --schedule dualpipe --ranks 8 --micro_batches 20
    """
    from fathom.chain import planning

    planning.plan(config, question, out)


def tokenize(config: Fields, toml: Toml = None, out: Out = None) -> None:
    """Train the tokenizer and cut the text into shards.

    Byte-level BPE with integers 0-999 as single tokens; documents become shards with their borders, some of them
    reordered to prefix-suffix-middle (V3 4.1). Sources are those of --text.sources.

    Example: fathom tokenize --text.sources book.txt notes.jsonl --out runs/mine
    """
    from fathom.chain import verbs

    verbs.tokenize(config, Run(out or _default_out(config)))


def pretrain(config: Fields, toml: Toml = None, out: Out = None, resume: Resume = False) -> None:
    """Pretrain on next tokens, and on those after them by multi-token prediction.

    AdamW, warm-up and decay, growing batch, experts balanced by a bias instead of a loss, all on V3's schedules
    (V3 2, 4.2). Flags of the stage begin with --pretrain.

    Example: fathom pretrain --preset laptop --pretrain.steps 400 --out runs/mine
    """
    from fathom.chain import verbs

    verbs.pretrain(config, Run(out or _default_out(config)), resume)


def sft(config: Fields, toml: Toml = None, out: Out = None, resume: Resume = False) -> None:
    """Fine-tune on worked solutions: the cold start before GRPO.

    The loss counts the reply alone, thinking and answer (R1 2.3.1). Flags of the stage begin with --sft.

    Example: fathom sft --out runs/mine --sft.optimizer.lr 1e-3
    """
    from fathom.chain import verbs

    verbs.sft(config, Run(out or _default_out(config)), resume)


def grpo(
    config: Fields,
    toml: Toml = None,
    out: Out = None,
    resume: Resume = False,
    budget: Annotated[str | None, arg(help="most that the stage may cost, such as 30usd; a resume counts all")] = None,
    price: Annotated[float | None, arg(help="dollars an hour of this machine (--dollars-per-hour)")] = None,
) -> None:
    """Reinforce what is checked to be right: group relative policy optimisation.

    A group of answers is sampled per question and graded by rule; each answer is pushed by how much better it is than
    its group (DeepSeekMath 4.1, R1 2.2). Flags of the stage begin with --grpo and --task.

    Example: fathom grpo --out runs/mine --grpo.steps 600 --grpo.objective.kl_beta 0.001

    Example: fathom grpo --out runs/mine --budget 30usd --price 3.0
    """
    from fathom.chain import verbs

    config = verbs.priced(config, budget, price)
    verbs.grpo(config, Run(out or _default_out(config)), resume)


def evaluate(run: RunDir, config: Fields, exam: Asked, toml: Toml = None) -> None:
    """Score a run's newest model on held-out problems, or any model on questions from files.

    Sampled and greedy accuracy with 95 % intervals, beside random legal play; with --eval.k also pass@k and the
    majority vote of k answers. --questions asks a file of your own, and --suite r1 the benchmarks of R1, sampled as
    they were and set beside the published scores; answers there are matched by value. --lm_eval runs tasks of
    EleutherAI's harness (pip install 'fathomlm[eval]'). The config is the run's own; flags, most of them under --eval
    and --task, lay others over it.

    Example: fathom eval runs/laptop --eval.problems 200 --eval.samples 8 --eval.k 1 4 8

    Example: fathom eval models/qwen --questions gsm8k.jsonl --samples 4 --max_tokens 1024

    Example: fathom eval models/r1-distill --suite r1 --aime aime_2024.jsonl --math_500 math_500.jsonl

    Example: fathom eval models/qwen --lm_eval arc_easy gsm8k --limit 100
    """
    from fathom.chain import verbs

    verbs.evaluate(config, Run(run), exam)


def generate(
    run: RunDir,
    prompts: Annotated[Positional[tuple[str, ...]], arg(metavar="PROMPT", help="questions, such as 8,2,4:10")],
    sampling: Sampling,
    lines: Annotated[
        Path | None,
        arg(name="input", help="JSONL file of prompts: prompt or messages; id, n, seed and sampling if wanted"),
    ] = None,
    output: Annotated[Path | None, arg(help="JSONL file for the answers to --input; one that is begun goes on")] = None,
    n: Annotated[int | None, arg(help="replies to each prompt (1); in a file it is a field of the line")] = None,
    seed: Annotated[
        int | None, arg(help="fixes the replies; 0 for a file unless given, else a new one each time")
    ] = None,
    int8: Annotated[
        bool, arg(help="on a CPU, decode with weights rounded to bytes: faster, and the error is shown")
    ] = False,
) -> None:
    """Answer prompts, from the command line or from a file.

    Prints one reply a prompt, thinking included. With --input and --output it answers a file, one JSON object a line,
    and adds each answer as it finishes; given again it goes on, and ids that are answered are passed over. The
    sampling is that of the run's GRPO unless flags or lines say otherwise; --temperature 0 takes the likeliest token.

    Example: fathom generate runs/laptop 8,2,4:10 3,9,5:11 --temperature 0

    Example: fathom generate --demo 8,2,4:10

    Example: fathom generate runs/laptop --input questions.jsonl --output answers.jsonl
    """
    if bool(lines) != bool(output) or bool(lines) == bool(prompts):
        raise ValueError("give one or more prompts, fathom generate RUN 8,2,4:10, or both --input and --output")
    from fathom.chain import talk

    if lines and output:
        if n is not None:
            raise ValueError("--n does not go with --input; write the field n into the lines that want it")
        print(talk.generate_file(Run(run), lines, output, sampling, seed or 0, int8))
    else:
        for reply in talk.generate(Run(run), prompts, sampling, 1 if n is None else n, seed, int8):
            print(reply, flush=True)


def chat(run: RunDir, sampling: Sampling) -> None:
    """Talk to a trained model in the terminal.

    Says what the model has learned, offers three problems, shows the thinking apart from the answer and checks each
    answer. An empty line or Ctrl-D ends it.

    Example: fathom chat runs/laptop

    Example: fathom chat --demo
    """
    from fathom.chain import talk

    talk.chat(Run(run), sampling)


def serve(run: RunDir, options: Serving) -> None:
    """Serve a trained model to OpenAI's clients over HTTP.

    The newest model of a run, or a checkpoint; with --demo in its place the small one that ships with Fathom.
    Thinking comes apart from the answer, streamed or whole. It listens on this machine alone; for any other address
    give API keys, one a line in --api_key_file, or FATHOM_API_KEY in the environment. SIGTERM and Ctrl-C let what was
    begun finish. --engine vllm or sglang exports the model, starts that engine on it and stands in front. Needs the
    extra: pip install 'fathomlm[serve]'.

    Example: fathom serve --demo

    Example: fathom serve runs/laptop --port 8000

    Example: fathom serve models/r1-distill --host 0.0.0.0 --api_key_file keys.txt --context 8192
    """
    from fathom.serve.start import require_start

    require_start(run, options)
    from fathom.serve import launch, server

    (server.serve if options.engine == "fathom" else launch.serve_engine)(run, options)


def conform(
    url: Annotated[Positional[str], arg(metavar="URL", help="base URL, with or without /v1")],
    key: Annotated[str, arg(help="API key")] = "",
    model: Annotated[str, arg(help="model id (the first that is listed)")] = "",
    prompt: Annotated[str, arg(help="what is asked; a few sentences should answer it")] = "What is 2 + 2? Be brief.",
    max_tokens: Annotated[int, arg(help="of each answer; a model that thinks long needs more")] = 512,
    burst: Annotated[int, arg(help="requests at once for the points of load; 0 leaves them out")] = 0,
    timeout_s: Annotated[float, arg(help="seconds for one answer")] = 60.0,
) -> None:
    """Ask any OpenAI-compatible server for what clients rely on.

    With the official client and plain HTTP: streams, usage, thinking, stop strings, refusals, keys. A table of what
    was seen, and one line of JSON. The exit code is 0 where every required point holds, and every other that the
    server offers but the optional ones. Needs the extra: pip install 'fathomlm[conform]'.

    Example: fathom conform http://localhost:8000 --burst 200
    """
    try:
        from fathom.conform import points
    except ImportError as error:
        raise ValueError(f"asking needs the package {error.name}; pip install 'fathomlm[conform]'") from error

    outcomes, record = points.conform(url, key, model, prompt, max_tokens, burst, timeout_s)
    print(points.table(outcomes), json.dumps(record), sep="\n")
    if failing := [each.name for each in outcomes if each.fails]:
        raise ValueError(f"{url} does not hold: {'; '.join(failing)}")


def report(run: RunDir) -> None:
    """Write the page of a run: curves, samples, cost.

    One self-contained report.html in the run's directory, from its records alone.

    Example: fathom report runs/laptop
    """
    from fathom.report import page

    print(page.write(Run(run)))


def export(
    run: Annotated[Positional[Path], arg(metavar="RUN", help="directory of a run, or of one checkpoint in it")],
    out: OutDir,
    dtype: Annotated[
        Literal["float32", "bfloat16", "fp8"], arg(help="fp8: e4m3 in blocks of 128 x 128, the form V3 came in")
    ] = "float32",
    workers: Annotated[int, arg(help="processes that share the files out; under torchrun it counts them itself")] = 1,
) -> None:
    """Write a model as transformers, vLLM and SGLang load it.

    Sharded safetensors under the published names, with config.json and the tokenizer. A process reads and writes one
    tensor at a time, also from a checkpoint that many processes wrote.

    Example: fathom export runs/laptop hub/laptop --dtype bfloat16
    """
    from fathom.checkpoint import hub
    from fathom.checkpoint.find import find_checkpoint
    from fathom.parallel.world import launch

    launch(workers, "cpu", hub.export_in_world, find_checkpoint(run), out, dtype)


def import_(
    source: Annotated[Positional[Path], arg(help="directory of safetensors with its config.json, or a .gguf file")],
    out: OutDir,
    dtype: Annotated[Literal["float32", "bfloat16"], arg(help="float32 holds every published precision")] = "float32",
) -> None:
    """Read a published model: DeepSeek, Moonlight, Kimi, Llama, Qwen.

    A tensor that does not fit the config is refused by name and nothing is left half written. Files in GGUF need the
    extra: pip install 'fathomlm[gguf]'.

    Example: fathom import ~/models/Qwen2.5-0.5B models/qwen
    """
    from fathom.checkpoint import hub

    hub.import_checkpoint(source, out, dtype)


def bench(
    what: Annotated[
        Positional[
            Literal["train", "decode", "rollout", "memory", "speculation", "attention", "gemm", "kernels", "scale"]
        ],
        arg(help="what to measure"),
    ],
    peer: Annotated[
        Literal["transformers", "trl", "none"], arg(help="library to run beside it: same shape, rows and tokens")
    ] = "none",
    model: Annotated[
        str | None,
        arg(help="decode: 0.7m, 16m (default), h200 (default on a GPU), or the directory of a run or checkpoint"),
    ] = None,
    rows: Annotated[tuple[int, ...] | None, arg(help="decode: batches; 1 32 on a CPU, 1 64 256 on a GPU")] = None,
    prompt: Annotated[int | None, arg(help="decode: tokens of each prompt; 32 on a CPU, 128 on a GPU")] = None,
    new_tokens: Annotated[int | None, arg(help="decode: tokens that follow (128)")] = None,
    rounds: Annotated[int | None, arg(help="decode: rounds that count; the median is given (5)")] = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda"] | None, arg(help="decode, rollout: where (auto); scale: cuda asks for GPUs")
    ] = None,
    int8: Annotated[bool | None, arg(help="decode: weights of 8 bits, on a CPU")] = None,
    run: Annotated[Path | None, arg(help="speculation: a run or checkpoint whose model has an MTP module")] = None,
) -> None:
    """Measure speed beside a peer, memory, drafts and messages beside formulas, or kernels.

    Ends in one line of JSON. Decoding is set beside the machine's roof: bytes that a step must move, the bandwidth
    reached of that measured, and what holds it up. Peers need the extra: pip install 'fathomlm[peers]'. A load on a
    server has flags of its own: fathom bench serve --help. Scale starts processes on
    the CPU, with --device cuda one a GPU, or is torchrun's; it has been run on CPUs alone so far.

    Example: fathom bench train --peer transformers

    Example: fathom bench decode --model runs/laptop --rows 1 8
    Example: fathom bench speculation --run runs/laptop

    Example: fathom bench scale

    Example: torchrun --nproc_per_node 2 -m fathom bench scale
    """
    module = import_module(f"fathom.bench.{what}")
    if run is not None and what != "speculation":
        raise ValueError(f"--run is for bench speculation; bench {what} measures a model of its own, so leave it out")
    given = {"model": model, "rows": rows, "prompt": prompt, "new_tokens": new_tokens, "rounds": rounds}
    given |= {"device": device, "int8": int8}
    options = {name: value for name, value in given.items() if value is not None}
    known = {"decode": set(given), "rollout": {"device"}, "scale": {"device"}}.get(what, set())
    if wrong := next((name for name in options if name not in known), None):
        raise ValueError(f"--{wrong} belongs to fathom bench decode; leave it out")
    match what:
        case "decode":
            measured = module.main(peer, module.DecodeOptions(**options))
        case "rollout" | "scale":
            measured = module.main(peer, **options)
        case "speculation":
            measured = module.main(peer, run)
        case _:
            measured = module.main(peer)
    if os.environ.get("RANK", "0") == "0":  # of processes that torchrun started, the first speaks
        print(json.dumps(measured))


def bench_serve(
    url: Annotated[Positional[str], arg(metavar="URL", help="base URL, with or without /v1")],
    load: Load = LOAD,
) -> None:
    """Put a load on any OpenAI-compatible server and time its answers.

    Requests arrive at random at --rate, whatever the server does, or come from --clients who wait for their answers.
    First token, time of a token, whole answers, rates, goodput, errors by kind, how busy the asking side was; beside
    the limit of memory and arithmetic where model and machine are known. Ends in one line of JSON. Needs the extra:
    pip install 'fathomlm[serve]'.

    Example: fathom bench serve http://localhost:8000 --clients 16 --requests 200

    Example: fathom bench serve http://gpu:8000 --rate 4 --ttft_ms 500 --token_ms 50 --config hub/r1 --hardware 8xH200
    """
    try:
        from fathom.bench import serve
    except ImportError as error:
        raise ValueError(f"the load needs the package {error.name}; pip install 'fathomlm[serve]'") from error

    print(json.dumps(serve.main(url, load)))


def simulate(
    ranks: Annotated[int, arg(help="processes on this machine")] = 8,
    layout: Annotated[
        str, arg(help="ways: pp (pipeline), ep (expert), dp (data), fs (shard), cp (context)")
    ] = "pp4ep2dp1",
    schedule: Annotated[Literal["1f1b", "zbv", "dualpipev"], arg(help="of the pipeline")] = "1f1b",
    zero: Annotated[Literal[1, 3], arg(help="what shards share: masters and moments, or weights too")] = 1,
    recompute: Annotated[Literal["none", "selective", "full"], arg(help="activations computed again")] = "none",
) -> None:
    """Try a layout out on this machine's processors before renting GPUs.

    A toy V3 (latent attention, grouped experts, MTP, selection bias) is trained over so many processes and in one, and
    losses, gradients and biases are compared. Prints who holds what, the bytes sent, and the pipeline's schedule as
    measured beside the planner's; ends in one line of JSON. Exit code 1 where the two differ.

    Example: fathom simulate --ranks 8 --layout pp4ep2dp1

    Example: fathom simulate --ranks 2 --layout pp2 --schedule dualpipev
    """
    from fathom.plan.notation import parse_layout

    wanted = parse_layout(layout, schedule=schedule, zero=zero, recompute=recompute)
    found = import_module("fathom.bench.simulate").simulate(wanted, ranks)
    print(found.text(), json.dumps(found.figures), sep="\n")
    if not found.equal:
        raise RuntimeError(f"--layout {layout} does not train what one process trains; the figures stand above")


def unlocks(
    card: Annotated[Positional[str], arg(metavar="NAME", help="an experiment, or all; none lists them")] = "",
    minutes: Annotated[float | None, arg(help="time for it; what does not fit is left for another call")] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"], arg(help="auto takes a GPU where there is one")] = "auto",
    size: Annotated[
        Literal["auto", "toy", "cpu", "gpu"], arg(help="auto goes by the device; toy is for tests")
    ] = "auto",
    out: Annotated[Path, arg(help="directory of the ledger, the checkpoints and the page")] = Path("unlocks"),
    own_run: Annotated[
        Path | None, arg(name="run", help="a run of yours, whose bill cost sets beside the paper's")
    ] = None,
    as_json: Annotated[bool, arg(name="json", help="print the numbers instead of tables")] = False,
) -> None:
    """Put the claims of the DeepSeek reports to the test on this machine.

    An experiment measures a baseline and a variant with the same code, over seeds, and ends in a verdict: supported,
    not supported or inconclusive. Each finished seed is a line of the ledger and is not run again, so the same command
    goes on. unlocks.html and unlocks.json in --out hold all that was measured.

    Example: fathom unlocks all --minutes 20

    Example: fathom unlocks cost --run runs/laptop
    """
    from fathom.unlocks import session

    context = session.context(device, size, out, minutes, own_run)
    print(session.listing(context, as_json) if not card else session.run(context, card, as_json))


def explain(
    name: Annotated[Positional[str], arg(metavar="NAME", help="a claim, such as cost or absorption")],
) -> None:
    """Say where a claim of the DeepSeek story stands: paper, code, test, measured.

    A row of docs/paper.md with its links. NAME is mostly that of an experiment of `fathom unlocks`; one that is
    unknown gets the list of all.

    Example: fathom explain cost
    """
    from fathom.unlocks import ledger

    print(ledger.explain(name))


def reward(
    action: Annotated[Positional[Literal["lint"]], arg(help="lint: attack the check of the task")],
    file: Annotated[
        Positional[Path], arg(metavar="FILE", help="Python file with prompt(rng) and check(answer, truth)")
    ],
    seconds: Annotated[float, arg(help="wall time of one check")] = 5.0,
    isolation: Annotated[
        Literal["require", "limits"], arg(help="limits: run the check where nothing cuts it off from network and files")
    ] = "require",
) -> None:
    """Attack the reward of a task of your own, before a model does.

    Some sixty answers that no check may pay, or that make a careless one hang, crash or run them as code; each in a
    child process. What is found is listed, with exit code 2.

    Example: fathom reward lint my_task.py
    """
    from fathom.config import TaskConfig
    from fathom.tasks.lint import lint

    found = lint(TaskConfig(kind="custom", file=str(file), check_seconds=seconds, isolation=isolation))
    print(found)
    if found.findings:
        raise ValueError(f"{file} can be cheated or stopped; mend check and repeat the command")


DEMO_VERBS = ("generate", "chat", "serve")  # that take --demo in the place of RUN
VERBS: dict[str, Callable[..., None]] = {
    "run": run,
    "plan": plan,
    "tokenize": tokenize,
    "pretrain": pretrain,
    "sft": sft,
    "grpo": grpo,
    "eval": evaluate,
    "generate": generate,
    "chat": chat,
    "serve": serve,
    "conform": conform,
    "report": report,
    "export": export,
    "import": import_,
    "bench": bench,
    "simulate": simulate,
    "unlocks": unlocks,
    "explain": explain,
    "reward": reward,
}
RESUMABLE = ("pretrain", "sft", "grpo")


# ---- from words to a call -------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; the exit code is 2 for a mistake of the caller, 1 for a fault of the machine, 130 for Ctrl-C."""
    logging.basicConfig(format="fathom: %(message)s")
    logging.getLogger("fathom").setLevel(logging.INFO)
    words = list(sys.argv[1:] if argv is None else argv)
    args = [word for word in words if word != "--traceback"]
    try:
        _call(args)
        return 0
    except BrokenPipeError:  # the reader left, as in `fathom grpo --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, MemoryError, RuntimeError, KeyboardInterrupt) as error:
        if len(args) < len(words):
            traceback.print_exc()
        code, sentence = _explain(error, args)
        print(f"fathom: {sentence}", file=sys.stderr)
        return code


def _call(args: list[str]) -> None:
    verb, *flags = args or ["--help"]
    if args[:2] == ["bench", "serve"]:  # which has flags of its own
        tyro.cli(bench_serve, prog="fathom bench serve", args=flags[1:], use_underscores=True)
        return
    if verb in DEMO_VERBS and "--demo" in flags:
        flags = [str(demo.RUN), *(flag for flag in flags if flag != "--demo")]
    if verb in ("-h", "--help"):
        print(_overview())
    elif verb == "--version":
        print(f"fathom {__version__}")
    elif verb in VERBS:
        job = partial(VERBS[verb], **_starting_values(verb, flags))
        about = inspect.getdoc(VERBS[verb])
        tyro.cli(job, prog=f"fathom {verb}", description=about, args=flags, use_underscores=True)
    else:
        close = difflib.get_close_matches(verb, VERBS, n=1)
        guess = f"did you mean `fathom {close[0]}`?" if close else f"the verbs are {', '.join(VERBS)}"
        raise ValueError(f"{verb!r} is no verb; {guess}")


def _overview() -> str:
    lines = [
        "usage: fathom VERB [FLAGS]",
        "",
        "Train, explain and serve DeepSeek-style reasoning models: the V3 to R1 recipe.",
        "",
        *(f"  {name:10}{(inspect.getdoc(verb) or '').splitlines()[0]}" for name, verb in VERBS.items()),
        "",
        "`fathom VERB --help` explains a verb with all its flags; --traceback shows where an error came from.",
    ]
    return "\n".join(lines)


def _starting_values(verb: str, flags: list[str]) -> dict[str, Any]:
    """What the flags of `verb` lie over: a preset, or the config that a run was made with."""
    toml = _value_of(flags, "config")
    if verb in ("tokenize", "pretrain", "sft", "grpo"):
        base = _stage_base(flags)
        if verb in ("sft", "grpo") and (init := _value_of(flags, "init")):
            base = _on_base(base, Path(init), _value_of(flags, "preset") is None)
        return {"config": load_config(base, Path(toml) if toml else None, _named(flags))}
    if verb == "plan":
        return {"config": load_config(_plan_base(flags), Path(toml) if toml else None), "question": Question()}
    if verb not in ("run", "eval", "generate", "chat", "serve"):
        return {}
    wants_help = "-h" in flags or "--help" in flags
    if not wants_help and (not flags or flags[0].startswith("-")):
        first = "PRESET" if verb == "run" else "RUN"
        other = f", or fathom {verb} --demo" if verb in DEMO_VERBS else ""
        raise ValueError(f"give the {first} right after the verb: fathom {verb} {first} [FLAGS]{other}")
    if verb == "serve":
        return {"options": ServeOptions()}
    if _value_of(flags, "preset"):
        raise ValueError(f"--preset does not go with fathom {verb}, whose config follows from {flags[0]}; leave it out")
    if verb != "run" and not wants_help and _is_checkpoint(Path(flags[0])):  # there is no run whose config says more
        config = load_config(Config(), Path(toml) if toml else None)
        return {"config": config, "exam": Exam()} if verb == "eval" else {"sampling": SamplingConfig()}
    base = preset("laptop") if wants_help else preset(flags[0]) if verb == "run" else Run(flags[0]).config
    if verb in ("generate", "chat"):
        return {"sampling": base.grpo.sampling}
    config = {"config": load_config(base, Path(toml) if toml else None, _named(flags))}
    return config | {"exam": Exam()} if verb == "eval" else config


def _is_checkpoint(path: Path) -> bool:
    from fathom.checkpoint.find import holds_weights

    return holds_weights(path)


def _stage_base(flags: list[str]) -> Config:
    """The preset that the flags or their TOML file name, else the config of the run in --out, else laptop's."""
    toml, out, name = (_value_of(flags, flag) for flag in ("config", "out", "preset"))
    if name is None and toml:
        name = read_toml(Path(toml)).get("preset")
    if name is None and out and (Path(out) / "config.json").exists():
        return Run(out).config
    return preset(str(name or "laptop"))


def _on_base(base: Config, init: Path, unnamed: bool) -> Config:
    """`base` for the model of the checkpoint that --init names; a run of no preset puts its questions in words."""
    from fathom.checkpoint.find import find_checkpoint
    from fathom.checkpoint.hub import read_config

    base = replace(base, model=read_config(find_checkpoint(init)))
    if not unnamed:
        return base
    return replace(base, preset="init", task=replace(base.task, prompt=base.task.prompt or "words"), workers=1)


def _plan_base(flags: list[str]) -> Config:
    """The config of the run or model that --compare or --model names, else the preset's."""
    from fathom.chain.planning import config_of

    path = _value_of(flags, "compare") or _value_of(flags, "model")
    return config_of(Path(path)) if path else _stage_base(flags)


def _named(flags: list[str]) -> dict[str, object]:
    """The objective that the flags name, whose values the other flags lie over."""
    name = _value_of(flags, "grpo.objective.name")
    return {"grpo.objective.name": name} if name else {}


def _value_of(flags: list[str], name: str) -> str | None:
    """The word given with `--name WORD` or `--name=WORD`."""
    for at, flag in enumerate(flags):
        head, equals, tail = flag.partition("=")
        if head == f"--{name}":
            return tail if equals else next(iter(flags[at + 1 :]), None)
    return None


def _default_out(config: Config) -> Path:
    return Path("runs") / config.preset


def _explain(error: BaseException, args: list[str]) -> tuple[int, str]:
    """The exit code and the one sentence for an error."""
    verb = args[0] if args else ""
    said = " ".join(str(error).split())
    match error:
        case KeyboardInterrupt() if verb in RESUMABLE:
            again = args if "--resume" in args else [*args, "--resume"]
            return 130, f"interrupted; the run can be resumed with `fathom {shlex.join(again)}`"
        case KeyboardInterrupt() if verb == "run":
            return 130, f"interrupted; the run can be resumed with the same command, `fathom {shlex.join(args)}`"
        case KeyboardInterrupt() if verb == "generate" and _value_of(args, "input"):
            return 130, f"interrupted; the same command goes on with the lines left, `fathom {shlex.join(args)}`"
        case KeyboardInterrupt():
            return 130, "interrupted"
        case ValueError():
            return 2, said
        case MemoryError():
            return 1, "the machine ran out of memory; lower micro_batch_rows of the stage and repeat the command"
        case OSError(errno=errno.ENOSPC):
            return 1, f"the disk is full ({error.filename or 'while writing'}); free some space and repeat the command"
        case OSError():
            return 1, f"{error.strerror or said}: {error.filename}" if error.filename else error.strerror or said
        case _:
            return 1, f"{said or type(error).__name__} (--traceback shows where)"
