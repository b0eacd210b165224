"""Numbers and lists in messages."""

from collections.abc import Sequence


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun, and any other words that depend on the number.

    Args:
        number: how many.
        noun: after 1.
        plural: after all others; None for the noun and an s.

    Example:
        >>> counted(1, "image"), counted(2, "mask is", "masks are")
        ('1 image', '2 masks are')
    """
    return f"{number} {noun if number == 1 else plural or f'{noun}s'}"


def first_ten(names: Sequence[str]) -> str:
    """A list of names; of many, the first ten and the number of others."""
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(names[:10]) + more
