"""What a device can do, by its data sheet.

Peaks are those of dense products (data sheets often print twice as much, for sparse ones) and are not reached: cards
throttle at their power limit, and no model is all products. Memory is what the driver reports in all, the half GiB or
so that CUDA keeps for itself included. Prices are rental prices, which move; only H800's is published with the figures
that it explains (V3 Table 1), all others are UNCONFIRMED orders of magnitude. Give your own.
"""

import difflib
import re
from dataclasses import dataclass

GB, TB, TERA = 1e9, 1e12, 1e12
MIB, GIB = 2**20, 2**30


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """One device. Peaks in FLOP/s, bandwidths in B/s, in one direction where there are two."""

    name: str
    memory_bytes: float
    bf16_flops: float  # 0 where BF16 is slower than FP32
    fp8_flops: float  # 0 where there are no FP8 units
    fp32_flops: float  # outside tensor cores
    memory_bandwidth: float
    nvlink_bandwidth: float  # to the other devices of a node; 0 where there is no link but PCIe
    network_bandwidth: float  # to other nodes, per device; 0 where none is usual
    watts: float  # of the device at its limit, without its share of host, network and cooling
    dollars_per_hour: float
    sources: str

    @property
    def peak_flops(self) -> float:
        """What MFU is a share of: the peak of BF16, as V3 counts even its FP8 run, or of FP32 where that is faster."""
        return self.bf16_flops or self.fp32_flops


@dataclass(frozen=True, kw_only=True)
class Devices:
    """So many of one device."""

    count: int
    hardware: Hardware

    def __str__(self) -> str:
        return f"{self.count:,} \N{MULTIPLICATION SIGN} {self.hardware.name}"


H100 = Hardware(
    name="H100",
    memory_bytes=81_559 * MIB,
    bf16_flops=989.4 * TERA,
    fp8_flops=1978.9 * TERA,
    fp32_flops=66.9 * TERA,
    memory_bandwidth=3.35 * TB,
    nvlink_bandwidth=450 * GB,
    network_bandwidth=50 * GB,
    watts=700,
    dollars_per_hour=2.50,
    sources="NVIDIA H100 SXM5 data sheet and Hopper white paper; DGX H100 data sheet (400 Gb/s a device)",
)

HARDWARE: dict[str, Hardware] = {
    "a100": Hardware(
        name="A100",
        memory_bytes=81_920 * MIB,
        bf16_flops=312 * TERA,
        fp8_flops=0,
        fp32_flops=19.5 * TERA,
        memory_bandwidth=2.039 * TB,
        nvlink_bandwidth=300 * GB,
        network_bandwidth=25 * GB,
        watts=400,
        dollars_per_hour=1.50,
        sources="NVIDIA A100 80GB SXM data sheet; DGX A100 data sheet (200 Gb/s a device)",
    ),
    "h100": H100,
    "h200": Hardware(
        name="H200",
        memory_bytes=143_771 * MIB,
        bf16_flops=H100.bf16_flops,
        fp8_flops=H100.fp8_flops,
        fp32_flops=H100.fp32_flops,
        memory_bandwidth=4.8 * TB,
        nvlink_bandwidth=450 * GB,
        network_bandwidth=50 * GB,
        watts=700,
        dollars_per_hour=3.00,
        sources="NVIDIA H200 SXM data sheet (compute as H100); DGX H200 data sheet (400 Gb/s a device)",
    ),
    "h800": Hardware(
        name="H800",
        memory_bytes=H100.memory_bytes,
        bf16_flops=H100.bf16_flops,
        fp8_flops=H100.fp8_flops,
        fp32_flops=H100.fp32_flops,
        memory_bandwidth=3.35 * TB,
        nvlink_bandwidth=200 * GB,
        network_bandwidth=50 * GB,
        watts=700,
        dollars_per_hour=2.00,
        sources="H100 SXM5 with half the NVLink, eight 400 Gb/s cards a node (ISCA'25 4); $2 an hour (V3 Table 1)",
    ),
    "b200": Hardware(
        name="B200",
        memory_bytes=178.35 * GIB,
        bf16_flops=2250 * TERA,
        fp8_flops=4500 * TERA,
        fp32_flops=75 * TERA,
        memory_bandwidth=7.67 * TB,
        nvlink_bandwidth=900 * GB,
        network_bandwidth=50 * GB,
        watts=1000,
        dollars_per_hour=5.00,
        sources="NVIDIA HGX B200 data sheet, an eighth of the board; memory and its bandwidth as the driver gives them",
    ),
    "gb200": Hardware(
        name="GB200",
        memory_bytes=186 * GB,
        bf16_flops=2500 * TERA,
        fp8_flops=5000 * TERA,
        fp32_flops=80 * TERA,
        memory_bandwidth=8.0 * TB,
        nvlink_bandwidth=900 * GB,
        network_bandwidth=50 * GB,
        watts=1200,
        dollars_per_hour=6.00,
        sources="NVIDIA GB200 NVL72 data sheet, per GPU; memory, watts and network UNCONFIRMED",
    ),
    "l40s": Hardware(
        name="L40S",
        memory_bytes=46_068 * MIB,
        bf16_flops=362 * TERA,
        fp8_flops=733 * TERA,
        fp32_flops=91.6 * TERA,
        memory_bandwidth=864 * GB,
        nvlink_bandwidth=0,
        network_bandwidth=25 * GB,
        watts=350,
        dollars_per_hour=1.00,
        sources="NVIDIA L40S data sheet; network UNCONFIRMED",
    ),
    "rtx4090": Hardware(
        name="RTX 4090",
        memory_bytes=24_564 * MIB,
        bf16_flops=165.2 * TERA,
        fp8_flops=330.3 * TERA,
        fp32_flops=82.6 * TERA,
        memory_bandwidth=1.008 * TB,
        nvlink_bandwidth=0,
        network_bandwidth=0,
        watts=450,
        dollars_per_hour=0.40,
        sources="NVIDIA Ada white paper, products accumulated in FP32",
    ),
    "rtx5090": Hardware(
        name="RTX 5090",
        memory_bytes=32_607 * MIB,
        bf16_flops=209.5 * TERA,
        fp8_flops=419 * TERA,
        fp32_flops=104.8 * TERA,
        memory_bandwidth=1.792 * TB,
        nvlink_bandwidth=0,
        network_bandwidth=0,
        watts=575,
        dollars_per_hour=0.70,
        sources="NVIDIA RTX Blackwell white paper, products accumulated in FP32",
    ),
    "laptop": Hardware(
        name="laptop",
        memory_bytes=8 * GIB,
        bf16_flops=0,
        fp8_flops=0,
        fp32_flops=140e9,
        memory_bandwidth=40 * GB,
        nvlink_bandwidth=0,
        network_bandwidth=0,
        watts=30,
        dollars_per_hour=0.10,
        sources="two AVX2 cores of 70 GFLOP/s each, as measured; memory, bandwidth, watts and price UNCONFIRMED",
    ),
}


def hardware_named(name: str) -> Hardware:
    """The device called `name`, in any spelling of case and spaces. Raises ValueError with the nearest name."""
    key = re.sub(r"[\s_-]", "", name.lower())
    if key in HARDWARE:
        return HARDWARE[key]
    close = difflib.get_close_matches(key, HARDWARE, n=1, cutoff=0.4)
    guess = f"did you mean {close[0]}?" if close else "there are"
    raise ValueError(f"the device {name!r} is unknown; {guess} ({', '.join(HARDWARE)})")


def parse_devices(text: str) -> Devices:
    """Devices as people write them: `2xH200`, `8 x h100`, `laptop` for one."""
    match = re.fullmatch(r"\s*(?:0*(\d+)\s*[x*\u00d7]\s*)?(\S.*?)\s*", text)
    if match is None or match[1] == "0":
        raise ValueError(f"{text!r} names no devices; give a number and a name, such as 2xH200")
    return Devices(count=int(match[1] or 1), hardware=hardware_named(match[2]))
