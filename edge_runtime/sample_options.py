"""What a device's owner allows to be sent of pictures that the model was unsure about."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SampleOptions:
    """What may be sent. `below`: the highest probability of an answer that counts as unsure."""

    below: float
    per_day: int = 100
    bytes_per_day: int = 20_000_000
