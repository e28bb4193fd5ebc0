"""Which of its blocks count when several networks are measured in turn. Pure.

Virtual machines, and boards that throttle, change their speed, and not alike for every kernel. Networks that take turns in
many short rounds each see the fast times; what each of them did in its fastest blocks can be compared with the others.
"""

from collections.abc import Sequence

FASTEST = 3  # one of so many blocks counts


def fastest_blocks(times: Sequence[float]) -> list[int]:
    """The fastest third of a network's blocks, at least one.

    Args:
        times: Of its blocks, in any unit.

    Returns:
        Indices in order.
    """
    count = -(-len(times) // FASTEST)
    return sorted(sorted(range(len(times)), key=lambda index: (times[index], index))[:count])
