"""Numbers as people read them. Pure."""


def amount(n_bytes: float) -> str:
    """Bytes: "512 B", "34 MB", "2.4 GB"; powers of ten."""
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if n_bytes >= 0.9995 * size:
            value = n_bytes / size
            return f"{value:.1f} {unit}" if value < 9.95 else f"{value:,.0f} {unit}"
    return f"{n_bytes:.0f} B"


def span(seconds: float) -> str:
    """A span of time: "0.4 s", "12 s", "4 min", "1 h 50 min", "3 days"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 89.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    if minutes < 36 * 60:
        hours, rest = divmod(minutes, 60)
        return f"{hours} h {rest} min" if rest else f"{hours} h"
    return f"{round(minutes / 1440)} days"


def rate(bits_per_s: float) -> str:
    """Megabits per second, with one digit below ten."""
    value = bits_per_s / 1e6
    return f"{value:.1f}" if value < 9.95 else f"{value:.0f}"
