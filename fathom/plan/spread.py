"""Which devices a run is planned on, and how its steps are spread over them."""

from dataclasses import dataclass, replace

from fathom.config import Config
from fathom.plan.cost import ORDINARY_MFU, is_v3, known_mfu
from fathom.plan.count import main_parameters
from fathom.plan.hardware import HARDWARE, Devices, parse_devices
from fathom.plan.layout import Layout, check
from fathom.plan.memory import memory
from fathom.plan.question import Question
from fathom.plan.search import Found, search
from fathom.plan.throughput import throughput

SMALL = 10_000_000  # parameters up to which a model is meant for a laptop
NODE = 8  # devices of a machine
STATE_BYTES = 18  # of a parameter in training, roughly
V3_LAYOUT = Layout(  # V3 3.2, on 2,048 H800
    shard=128,
    zero=1,
    expert=64,
    pipeline=16,
    schedule="dualpipe",
    micro_batches=120,
    recompute="selective",
    precision="fp8",
    optimizer="adamw_bf16",
)


def choose_devices(config: Config, question: Question) -> Devices:
    """The devices that were asked for, or some that hold a training run of the model, at the price that was given."""
    model = config.model
    needed = NODE
    while needed * HARDWARE["h200"].memory_bytes < STATE_BYTES * main_parameters(model):
        needed *= 2
    usual = "laptop" if main_parameters(model) < SMALL else "2048xH800" if is_v3(model) else f"{needed}xH200"
    devices = parse_devices(question.gpus or usual)
    price, _ = price_of(config, question, devices)
    return replace(devices, hardware=replace(devices.hardware, dollars_per_hour=price))


def price_of(config: Config, question: Question, devices: Devices) -> tuple[float, str]:
    """Dollars an hour of one device, and who says so."""
    if question.price is not None:
        return question.price, "given"
    if config.dollars_per_hour != Config.dollars_per_hour:  # the default is a laptop's, and says nothing of others
        return config.dollars_per_hour / devices.count, "the config's, shared among the devices"
    return devices.hardware.dollars_per_hour, "a table's, and prices move; give yours with --price"


@dataclass(frozen=True, kw_only=True)
class Spread:
    """The layouts that fit, best first, with the share of the peak that the best one reaches."""

    found: list[Found]
    problem: str  # why none fits
    mfu: float
    mfu_source: str


def spread_over(config: Config, question: Question, devices: Devices) -> Spread:
    """The layout that was asked for, V3's own, or all that a search finds.

    Raises ValueError for a layout that cannot be; one that only takes too much memory is kept.
    """
    rows, seq_len, model = config.pretrain.batch_rows, config.pretrain.seq_len, config.model
    known = (question.mfu, "given") if question.mfu else known_mfu(model, devices.hardware)
    mfu = known and known[0]
    found, problem, layout = list[Found](), "", question.layout
    if is_v3(model) and not question.gpus and layout == Layout():
        layout = V3_LAYOUT
    if layout != Layout():
        check(layout, model, devices, rows, seq_len)
        needed = memory(model, layout, seq_len)
        found = [Found(layout=layout, memory=needed, throughput=throughput(model, layout, devices, seq_len, mfu))]
    else:
        try:
            found = search(model, devices, rows, seq_len, _plain(config, devices), mfu, shown=10**6)
        except ValueError as error:
            problem = str(error)
    if known is None:
        best = "predicted for the first of the layouts above"
        known = (found[0].throughput.mfu, best) if found else (ORDINARY_MFU, "assumed; give yours with --mfu")
    return Spread(found=found, problem=problem, mfu=known[0], mfu_source=known[1])


def _plain(config: Config, devices: Devices) -> Layout:
    """A layout of one device in the precision that the trainer computes in there."""
    moments = "adamw" if config.pretrain.optimizer.moments == "float32" else "adamw_bf16"
    half = config.dtype == "bfloat16" or (config.dtype == "auto" and devices.hardware.bf16_flops)
    return Layout(precision="bf16" if half else "fp32", optimizer=moments)
