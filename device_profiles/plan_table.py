"""plan.json: which plan to use at which bandwidth and round-trip time, small enough for a device to look up.

Each choice carries what its latency is made of, so that the device prices it under the link that it sees with the same
formula as the planner (`latency_ms`). Cells are the planner's decisions, choice numbers over a grid of rate x rtt.
"""

import bisect
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from device_profiles.errors import EdgeError
from device_profiles.link import Link

PLAN_SCHEMA = 1
MAX_PLAN_BYTES = 1 << 20
MAX_CHOICES = 64
MAX_CELLS = 4096

ChoiceKind = Literal["local", "remote", "split"]
Objective = Literal["latency", "p95", "energy", "uplink", "accuracy"]


class PlanTableError(EdgeError):
    """A plan table is not valid: unknown fields, an empty or unsorted grid, or a cell that names no choice."""


class Choice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One plan. Times in ms, p50 and p95; `up_bytes` and `down_bytes` are whole messages, envelope and frame included.

    `remote_share` is the share of requests that leave the device: below 1 with an early exit.
    """

    name: str  # what users call it
    kind: ChoiceKind
    artefact: str | None = None  # route key of head (split) or of the whole model on the host (remote)
    device_ms: float  # preprocessing, head, encoding
    device_p95_ms: float
    host_ms: float = 0.0  # queue, decoding, tail
    host_p95_ms: float = 0.0
    up_bytes: int = 0
    down_bytes: int = 0
    remote_share: float = 1.0
    tensors: tuple[str, ...] = ()  # that cross, of a raw split: what binds a head to it that was built later
    picture: str | None = None  # codec and quality of a picture that is sent, "jpeg:75"
    layers: int = 0  # of the head's stream that are sent, the first ones; 0 for all

    @property
    def plan_id(self) -> str:
        """First 8 bytes, as hex, of sha256 over the fields; floats enter as `float.hex` text."""
        plain = [getattr(self, name) for name in self.__struct_fields__ if not name.endswith(("_ms", "_share"))]
        plain += [
            float(getattr(self, name)).hex() for name in self.__struct_fields__ if name.endswith(("_ms", "_share"))
        ]
        return hashlib.sha256(msgspec.json.encode(plain)).hexdigest()[:16]

    def latency_ms(self, link: Link) -> float:
        """Median of one request over this link; the mean over both kinds of request with an early exit."""
        if self.kind == "local":
            return self.device_ms
        return self.device_ms + self.remote_share * (self.away_ms(link) + self.host_ms)

    def latency_p95_ms(self, link: Link) -> float:
        """Upper estimate of the p95: p95 of each part, as if all were slow together, plus the jitter once."""
        if self.kind == "local" or self.remote_share <= 0.05:
            return self.device_p95_ms
        return self.device_p95_ms + self.away_ms(link) + link.jitter_ms + self.host_p95_ms

    def away_ms(self, link: Link) -> float:
        """Both messages on the link, p50."""
        return link.uplink_ms(self.up_bytes) + link.downlink_ms(self.down_bytes)


class PlanTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`cells[i][j]` is the choice for `rates_bytes_per_s[i]` and `rtts_ms[j]`; choice 0 is the local fallback if any."""

    schema: int = PLAN_SCHEMA
    model: str
    device: str  # board id
    host: str
    rates_bytes_per_s: tuple[float, ...]  # up, ascending
    rtts_ms: tuple[float, ...]  # ascending
    choices: tuple[Choice, ...]
    cells: tuple[tuple[int, ...], ...]
    link: Link  # what the grid varies: its jitter, ratio down to up and costs per message and byte stay
    deadline_ms: float | None = None
    min_accuracy: float | None = None
    objective: Objective = "latency"  # that its cells are best for

    @property
    def table_id(self) -> str:
        """First 8 bytes, as hex, of sha256 over the canonical JSON."""
        plain = msgspec.convert(msgspec.to_builtins(self), PlanTable, strict=False)  # whole numbers become floats
        return hashlib.sha256(msgspec.json.encode(plain, order="sorted")).hexdigest()[:16]

    def lookup(self, rate_bytes_per_s: float, rtt_ms: float) -> int:
        """Number of the choice of the nearest grid point: nearest in the logarithm for the rate; clamped at the edges.

        Raises:
            PlanTableError: The link's figures are no positive finite rate and finite rtt >= 0.
        """
        if not (math.isfinite(rate_bytes_per_s) and rate_bytes_per_s > 0 and math.isfinite(rtt_ms) and rtt_ms >= 0):
            raise PlanTableError(f"Wanted a positive rate and rtt >= 0, found {rate_bytes_per_s} B/s and {rtt_ms} ms.")
        row = _nearest([math.log(rate) for rate in self.rates_bytes_per_s], math.log(rate_bytes_per_s))
        return self.cells[row][_nearest(list(self.rtts_ms), rtt_ms)]

    def restricted(self, usable: Sequence[int]) -> "PlanTable":
        """The same table with these choices only.

        A cell of another one takes the usable one that keeps the deadline there and is fastest. Where the table is for
        something else than time, the one that it chose at the nearest rate with this round trip goes before: what
        these plans have of energy or accuracy does not stand in the table, and the planner weighed it there.

        Raises:
            PlanTableError: None is usable.
        """
        if not usable:
            raise PlanTableError(
                f"Wanted a plan that can be used here, found none of {len(self.choices)}. Deploy its head."
            )
        kept = tuple(self.choices[number] for number in usable)
        limit = math.inf if self.deadline_ms is None else self.deadline_ms

        def cell(row: int, column: int) -> int:
            if self.cells[row][column] in usable:
                return usable.index(self.cells[row][column])
            link = self.link.at_rate(self.rates_bytes_per_s[row], self.rtts_ms[column])
            away = dict.fromkeys(usable, math.inf)
            if self.objective not in ("latency", "p95"):
                for place, other in enumerate(self.cells):
                    if other[column] in away:
                        away[other[column]] = min(away[other[column]], abs(place - row))
            cost = []
            for number, one in zip(usable, kept, strict=True):
                p95 = one.latency_p95_ms(link)
                cost.append((p95 > limit, away[number], p95 if self.objective == "p95" else one.latency_ms(link)))
            return cost.index(min(cost))

        cells = tuple(tuple(cell(row, column) for column in range(len(self.rtts_ms))) for row in range(len(self.cells)))
        return msgspec.structs.replace(self, choices=kept, cells=cells)

    @property
    def local(self) -> int | None:
        """Number of the choice that needs no link; null without one."""
        return next((number for number, choice in enumerate(self.choices) if choice.kind == "local"), None)


def parse_plan_table(data: bytes) -> PlanTable:
    """Decode and check a plan table.

    Raises:
        PlanTableError: Too large, not JSON, an unknown field or schema, or a value out of range.
    """
    if len(data) > MAX_PLAN_BYTES:
        raise PlanTableError(f"Wanted a plan table of at most {MAX_PLAN_BYTES} B, found {len(data)} B.")
    try:
        table = msgspec.json.decode(data, type=PlanTable)
    except (EdgeError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PlanTableError(
            f"Wanted the fields of a plan table, found: {error}. Run `headtail plan` again."
        ) from error
    return check_plan_table(table)


def load_plan_table(path: Path) -> PlanTable:
    """Read a plan table.

    Raises:
        PlanTableError: As `parse_plan_table`, or no such file; the message names it.
    """
    try:
        if path.stat().st_size > MAX_PLAN_BYTES:
            raise PlanTableError(f"Wanted a plan table of at most {MAX_PLAN_BYTES} B, found more in {path}.")
        return parse_plan_table(path.read_bytes())
    except OSError as error:
        raise PlanTableError(f"Wanted a plan table, found {error.strerror} at {path}.") from error


def dump_plan_table(table: PlanTable) -> bytes:
    """JSON with sorted keys, checked before it is written.

    Raises:
        PlanTableError: As `check_plan_table`.
    """
    plain = msgspec.to_builtins(check_plan_table(table))
    for choice in plain["choices"]:
        if not choice["layers"]:
            del choice["layers"]  # agents from before streams take a table without any
    if plain["objective"] == "latency":
        del plain["objective"]  # agents that know no other objective take such a table
    return msgspec.json.format(msgspec.json.encode(plain, order="sorted"), indent=1) + b"\n"


def check_plan_table(table: PlanTable) -> PlanTable:
    """Check grid, cells and times; returns the table.

    Raises:
        PlanTableError: Naming the field and the value.
    """
    if table.schema != PLAN_SCHEMA:
        raise PlanTableError(f"Wanted plan schema {PLAN_SCHEMA}, found {table.schema}. Run `headtail plan` again.")
    for name, axis, least in (("rates_bytes_per_s", table.rates_bytes_per_s, 1e-9), ("rtts_ms", table.rtts_ms, 0.0)):
        good = axis and all(math.isfinite(value) and value >= least for value in axis)
        if not good or list(axis) != sorted(set(axis)):
            raise PlanTableError(f"Wanted finite, ascending {name}, found {axis}.")
    rows, columns = len(table.rates_bytes_per_s), len(table.rtts_ms)
    if rows * columns > MAX_CELLS or not 1 <= len(table.choices) <= MAX_CHOICES:
        raise PlanTableError(
            f"Wanted at most {MAX_CELLS} cells and 1 to {MAX_CHOICES} choices, found {rows * columns} and {len(table.choices)}."
        )
    if len(table.cells) != rows or any(len(row) != columns for row in table.cells):
        raise PlanTableError(f"Wanted {rows} rows of {columns} cells, found {[len(row) for row in table.cells]}.")
    wrong = [cell for row in table.cells for cell in row if not 0 <= cell < len(table.choices)]
    if wrong:
        raise PlanTableError(f"Wanted cells that number one of {len(table.choices)} choices, found {wrong[0]}.")
    for choice in table.choices:
        _check_choice(choice)
    return table


def _check_choice(choice: Choice) -> None:
    for name in ("device_ms", "device_p95_ms", "host_ms", "host_p95_ms", "up_bytes", "down_bytes"):
        value = getattr(choice, name)
        if not (math.isfinite(value) and value >= 0):
            raise PlanTableError(f"Wanted a finite {name} >= 0 of choice {choice.name!r}, found {value}.")
    if choice.layers < 0:
        raise PlanTableError(f"Wanted layers >= 0 of choice {choice.name!r}, found {choice.layers}.")
    if not 0.0 <= choice.remote_share <= 1.0:
        raise PlanTableError(f"Wanted a remote_share of 0 to 1 of choice {choice.name!r}, found {choice.remote_share}.")


def _nearest(axis: list[float], value: float) -> int:
    right = bisect.bisect_left(axis, value)
    if right == 0:
        return 0
    if right == len(axis):
        return right - 1
    return right if axis[right] - value < value - axis[right - 1] else right - 1
