"""Names tell units."""

import pytest

from fathom.report.amounts import amount, days, memory, name, operations, price, share
from fathom.report.units import MISSING, SPACE


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("dollars_per_hour", 2.0, "$2.00"),
        ("dollars", 5_576_000, "$5,576,000"),
        ("cost mfu", 0.3894, "38.9 %"),
        ("bubble_share", 0.0909, "9.1 %"),
        ("bubble", 6.0, "6"),
        ("cache bytes BF16", 70_272, "70,272 B"),
        ("peak_memory_bytes", 143_285_952, "137 MiB"),
        ("weight_bytes", 143_285_952, "143 MB"),
        ("checkpoint bytes FP8", 688_574_839_360, "688.6 GB"),
        ("checkpoint elements F32", 41_555_600, "41,555,600"),
        ("flops training", 250.46e9, "250.46 GFLOP"),
        ("flops seq_len", 4096, "4,096"),
        ("tokens", 14.8e12, "14.8 T"),
        ("tokens_per_s", 3_160_494.3, "3,160,494"),
        ("tokens_per_s_each", 43.64, "43.6"),
        ("tokens_per_active_parameter", 404.1, "404"),
        ("gpu_hours", 2_664_000.0, "2,664,000 h"),
        ("hours", 18.24, "18.2 h"),
        ("hours", 0.5, "30 min 00 s"),
        ("hours", 0, "0 h"),
        ("seconds", 19.926, "19.9 s"),
        ("energy_kwh", 1_951_600.4, "1,951,600 kWh"),
        ("energy_kwh", 0.00314, "0.0031 kWh"),
        ("mtp_speedup", 1.8224, "1.822"),
        ("runs_in_fathom", True, "yes"),
        ("dtype", "fp8", "FP8"),
        ("devices", "2 x H200", "2 x H200"),
        ("anything", None, MISSING),
    ],
)
def test_amounts(key: str, value: object, text: str) -> None:
    assert amount(key, value).replace(SPACE, " ") == text


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("routed_experts", "Routed experts"),
        ("mtp", "MTP"),
        ("training_with_mtp", "Training with MTP"),
        ("training_non_causal", "Training non-causal"),
        ("tokens_per_s_each", "Tokens/s each"),
        ("peak_memory_bytes", "Peak memory"),
        ("F8_E4M3", "F8_E4M3"),
        ("zero", "ZeRO"),
    ],
)
def test_names(key: str, words: str) -> None:
    assert name(key) == words


def test_sizes_for_people() -> None:
    assert price(999.5) == "$999.50" and price(66_229.2) == "$66,229"
    assert days(1361).replace(SPACE, " ") == "56.7 days" and days(0.5).replace(SPACE, " ") == "30 min 00 s"
    assert memory(75 * 2**30).replace(SPACE, " ") == "75.0 GiB" and memory(2**21).replace(SPACE, " ") == "2 MiB"
    assert operations(3.71e24).replace(SPACE, " ") == "3,710,000.00 EFLOP" and operations(0).endswith("FLOP")
    assert share(0.0001).replace(SPACE, " ") == "< 0.1 %" and share(0).replace(SPACE, " ") == "0.0 %"
