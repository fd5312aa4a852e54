"""Numbers as people read them."""

import math

SPACE = "\N{NO-BREAK SPACE}"
MISSING = "\N{EN DASH}"
TIMES = "\N{MULTIPLICATION SIGN}"
SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def percent(share: float) -> str:
    """A share in percent, to a tenth."""
    return f"{100 * share:.1f}{SPACE}%"


def points(difference: float) -> str:
    """The size of a difference between two shares, in percentage points."""
    return f"{100 * abs(difference):.1f}{SPACE}points"


def duration(seconds: float | None) -> str:
    """Seconds in the two largest units that matter."""
    if seconds is None:
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f}{SPACE}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{SPACE}min {rest:02}{SPACE}s"
    return f"{minutes // 60}{SPACE}h {minutes % 60:02}{SPACE}min"


def dollars(amount: float | None) -> str:
    """Money, with two digits that count below a cent."""
    if amount is None:
        return MISSING
    digits = 2 if amount >= 0.1 or amount == 0 else 1 - math.floor(math.log10(amount))
    return f"${amount:,.{digits}f}"


def power_of_ten(amount: float | None) -> str:
    """A large count, such as floating-point operations, as digits times a power of ten."""
    if not amount:
        return MISSING
    digits, exponent = f"{amount:.1e}".split("e")
    return f"{digits}{SPACE}{TIMES}{SPACE}10{str(int(exponent)).translate(SUPERSCRIPTS)}"


def size(parameters: float) -> str:
    """A number of parameters to three digits, in thousands, millions or billions."""
    exponent = int(f"{parameters:.2e}".split("e")[1])
    power = min(max(exponent // 3, 0), 4)
    unit = ("", "k", "M", "B", "T")[power]
    return f"{parameters / 1000**power:#.3g}".rstrip(".") + f"{SPACE}{unit}".rstrip(SPACE)


def count(amount: float | None) -> str:
    """A whole number with its thousands apart."""
    return MISSING if amount is None else f"{round(amount):,}"


def gibibytes(amount: float | None) -> str:
    """Memory in GiB."""
    return MISSING if amount is None else f"{amount:.2f}{SPACE}GiB"
