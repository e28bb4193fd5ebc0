"""Every MQTT topic and control payload of headtail, on one screen.

Topics: ht/v1/<tenant>/<device>/<lane>/...; up = device to host, down = host to device, off = offloaded requests.

| topic | payload | QoS, retain |
| --- | --- | --- |
| up/birth, up/death (will) | Birth, Death | 1, retained |
| up/hb | Heartbeat | 0 |
| up/result | Result | 0 |
| up/reported | Reported | 1, retained |
| up/job | JobStatus | 1 |
| up/deploy | DeployStatus | 1 |
| down/desired | Desired | 1, retained |
| down/job | JobOrder | 1 |
| up/tail | TailBeat (tail_messages.py) | 0 |
| up/llm (will), up/llm-plan (will) | LlmNode, LlmPlan (llm_messages.py) | 1, retained |
| up/sample | sample (binary, sample_message.py) | 0 |
| down/deploy | DeployStart | 1 |
| down/rollback | RollBack | 1 |
| down/blk/<transfer> | block (binary, blocks.py) | 1 |
| off/req/<key>/<boot> | request (wire.py) | 0 or 1 |
| off/rep/<boot> | reply (wire.py) | as the request |
"""

import re
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

import msgspec

from device_profiles.errors import EdgeError

PREFIX = "ht/v1"
MAX_CONTROL_BYTES = 16 << 10
BLOCK_BYTES = 64 << 10  # content of one block
MAX_TRANSFER_BYTES = 2 << 30
MAX_BLOCKS = MAX_TRANSFER_BYTES // BLOCK_BYTES
INSTALLED = "0" * 64  # in place of a bundle's id: the agent that was installed, in no slot

_SEGMENT = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,63}\Z")

Text = Annotated[str, msgspec.Meta(max_length=500)]
Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,63}$")]
Boot = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{16}$")]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Milliseconds = Annotated[
    float, msgspec.Meta(ge=-1e9, le=1e9)
]  # sums of some stay finite; what is unaccounted may be below 0
JobId = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.:-]{0,159}$")]
ShortText = Annotated[str, msgspec.Meta(max_length=100)]
Setting = (
    bool | Annotated[int, msgspec.Meta(ge=-(2**53), le=2**53)] | float | Annotated[str, msgspec.Meta(max_length=500)]
)
Settings = Annotated[dict[Name, Setting], msgspec.Meta(max_length=64)]


class MessageError(EdgeError):
    """A topic or control message that this module does not declare."""


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every control message; `boot` is new each time that an agent starts."""

    v: Literal[1] = 1
    boot: Boot


class Slots(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Artefact ids that a device runs: a head with its tail on the host, a whole model, or both."""

    head: Sha256 | None = None
    whole: Sha256 | None = None


class Birth(Message, frozen=True, kw_only=True):
    """A device is there: what it is and what it takes."""

    agent: Text  # version
    board: Text
    engines: Annotated[tuple[Text, ...], msgspec.Meta(max_length=16)]
    max_block_bytes: Count
    slots: Slots
    problem: Text | None = None  # why what was deployed does not run
    boot_count: Count = 0  # starts of this device so far, kept over restarts: tells an old birth from a new one
    desired_rev: Count = 0  # newest desired state that the device has seen
    labels: Annotated[dict[Name, ShortText], msgspec.Meta(max_length=32)] = {}
    agent_artefact: Sha256 | msgspec.UnsetType = msgspec.UNSET  # the bundle it runs from; absent: as it was installed


class Death(Message, frozen=True, kw_only=True):
    """The will: published by the broker when the device is gone. Ignored when `boot` is not the current one."""


class Heartbeat(Message, frozen=True, kw_only=True):
    """Every few seconds while the device runs; counters start at the boot."""

    seq: Count
    uptime_s: float
    frames: Count
    dropped: Count  # frames that a newer one replaced
    remote: Count
    local: Count
    failed: Count
    late: Count  # answers that came after their request had ended
    rss_bytes: Count | None
    slots: Slots
    desired_rev: Count = 0
    temperature_c: float | None = None
    cpu_share: float | None = None  # of one core, since the last heartbeat
    config_rev: Count = 0  # revision of the remote configuration in use


class Ranked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One class of an answer."""

    index: Count
    score: float  # probability where the outputs are real numbers, the stored value otherwise
    label: Text | None = None


class Result(Message, frozen=True, kw_only=True):
    """What became of one frame."""

    seq: Count
    frame: Text  # name of the file, or number of the frame
    source: Literal["remote", "local", "exit", "error"]
    top: Annotated[tuple[Ranked, ...], msgspec.Meta(max_length=20)] = ()
    error: Text | None = None
    ms: dict[Name, Milliseconds] = {}  # where the time went, by stage (`edge_runtime.answer.Breakdown`)
    plan_id: Boot | None = None  # of the plan that was followed, where the device has a plan table
    sent: Count = 0  # bytes that were published for it
    agrees: bool | None = None  # tail and whole model, where both answered


class DeployStart(Message, frozen=True, kw_only=True):
    """An artefact's .zip comes in blocks. `boot` is the sender's. Sent again to ask how far it is.

    With a `url` the device fetches the blocks itself over HTTP; where it cannot, it asks for them here ("receiving").
    """

    transfer: Boot
    artefact: Sha256
    zip_sha256: Sha256
    size: Annotated[int, msgspec.Meta(ge=1, le=MAX_TRANSFER_BYTES)]
    url: Text | None = None  # of the .zip; the sha256 of its blocks, 32 bytes each, lie beside it as <url>.blocks
    blocks_sha256: Sha256 | None = None  # of that list
    budget_ms: Annotated[float, msgspec.Meta(gt=0, le=1e7)] | None = None  # a golden run may not take longer
    probation_s: Annotated[float, msgspec.Meta(ge=0, le=1e7)] | None = None  # the device's own choice when null
    probation_frames: Count | None = None


class RollBack(Message, frozen=True, kw_only=True):
    """Leave this artefact for what ran before, if the signed floor allows it. `boot` is the sender's."""

    artefact: Sha256


DeployState = Literal[
    "fetching",  # over HTTP: send nothing
    "receiving",  # send the blocks that `have` lacks
    "verifying",
    "active",  # it runs, on probation
    "committed",  # it has proven itself
    "rolled-back",  # it had run, and what ran before runs again
    "failed",  # refused; nothing has changed
    "busy",  # with another transfer
]


class DeployStatus(Message, frozen=True, kw_only=True):
    """How far a transfer is; `have` is the bitmap of blocks received, bit 0 of byte 0 first.

    `code` is the name of the error's class, `error` its text.
    """

    transfer: Boot
    artefact: Sha256 | None = None
    state: DeployState
    have: Annotated[bytes, msgspec.Meta(max_length=MAX_BLOCKS // 8)] = b""
    code: Name | None = None
    error: Text | None = None


class ArtefactRef(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One artefact to run; a device that stores it fetches nothing.

    Else its .zip is at `url` (HTTP with ranges), or comes in blocks over MQTT where that is null. Without size and hash the
    host has no .zip (it was deployed from elsewhere).
    """

    artefact: Sha256
    zip_sha256: Sha256 | None = None
    size: Annotated[int, msgspec.Meta(ge=1, le=MAX_TRANSFER_BYTES)] | None = None
    url: Text | None = None


class Models(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the slots of a device should hold, exactly: a null slot is empty."""

    version: Text = ""  # name@version, for people
    head: ArtefactRef | None = None
    whole: ArtefactRef | None = None


class Desired(Message, frozen=True, kw_only=True):
    """What a device should be, whole, never a difference. `boot` is the sender's."""

    rev: Count  # only grows
    job: JobId | None = None  # that this revision carries out
    models: Models | None = None  # null: the host does not manage them, `headtail deploy` does
    agent: ArtefactRef | None = None  # for the agent's own slots; null: the host does not manage them
    probation_s: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 10.0
    config: Settings = {}
    config_rev: Count = 0


class Reported(Message, frozen=True, kw_only=True):
    """How far a device is with the desired state `rev`; sent at every change and after every connect."""

    seq: Count
    rev: Count
    job: JobId | None = None
    state: Literal["idle", "downloading", "verifying", "probation", "active", "failed", "rolled_back"]
    version: Text | None = None  # that runs now
    slots: Slots = Slots()
    done_bytes: Count = 0
    total_bytes: Count = 0
    error: Text | None = None
    config_rev: Count = 0  # of the remote configuration in use
    config_problem: Text | None = None  # keys of it that this agent does not know or take


class JobOrder(Message, frozen=True, kw_only=True):
    """Do this once: a job id that was done before is answered from the device's ledger. `boot` is the sender's."""

    job: JobId
    attempt: Count
    kind: Name
    arguments: Settings = {}
    budget_ms: Count  # from its arrival; no clock is compared
    cancel: bool = False  # do not begin it any more


class JobStatus(Message, frozen=True, kw_only=True):
    """What became of a job on the device."""

    job: JobId
    attempt: Count
    state: Literal["accepted", "succeeded", "failed", "rejected", "cancelled"]
    result: Settings = {}
    error: Text | None = None


Control = TypeVar("Control", bound=Message)


def encode_control(message: msgspec.Struct) -> bytes:
    """Encode a control message as JSON.

    Raises:
        MessageError: Longer than `MAX_CONTROL_BYTES`.
    """
    data = msgspec.json.encode(message)
    if len(data) > MAX_CONTROL_BYTES:
        raise MessageError(f"Wanted {type(message).__name__} within {MAX_CONTROL_BYTES} B, found {len(data)} B.")
    return data


def decode_control(data: bytes, kind: type[Control]) -> Control:
    """Decode and check a control message.

    Raises:
        MessageError: Too long, not JSON, an unknown field, or a value out of range.
    """
    if len(data) > MAX_CONTROL_BYTES:
        raise MessageError(f"Wanted {kind.__name__} within {MAX_CONTROL_BYTES} B, found {len(data)} B.")
    if b"\\u0000" in data:
        raise MessageError(f"Wanted a {kind.__name__} message, found NUL in its text, which no database keeps.")
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MessageError(f"Wanted a {kind.__name__} message, found: {error}.") from error


@dataclass(frozen=True)
class Topics:
    """The topics of one device.

    Raises:
        MessageError: A tenant or device that is not 1 to 64 letters, digits, `_`, `-` or inner `.`.
    """

    tenant: str
    device: str

    def __post_init__(self) -> None:
        check_segment("tenant", self.tenant)
        check_segment("device", self.device)

    def up(
        self,
        kind: Literal[
            "birth", "death", "hb", "result", "reported", "job", "deploy", "tail", "sample", "llm", "llm-plan"
        ],
    ) -> str:
        """From the device to the host."""
        return f"{PREFIX}/{self.tenant}/{self.device}/up/{kind}"

    @property
    def desired(self) -> str:
        """Holds the desired state, retained."""
        return f"{PREFIX}/{self.tenant}/{self.device}/down/desired"

    @property
    def job(self) -> str:
        """Orders a job."""
        return f"{PREFIX}/{self.tenant}/{self.device}/down/job"

    @property
    def deploy(self) -> str:
        """Announces a transfer to the device."""
        return f"{PREFIX}/{self.tenant}/{self.device}/down/deploy"

    @property
    def rollback(self) -> str:
        """Tells the device to go back."""
        return f"{PREFIX}/{self.tenant}/{self.device}/down/rollback"

    def block(self, transfer: str) -> str:
        """Carries the blocks of a transfer; `+` as the transfer subscribes to all."""
        return f"{PREFIX}/{self.tenant}/{self.device}/down/blk/{transfer if transfer == '+' else check_segment('transfer', transfer)}"

    @property
    def orders(self) -> tuple[str, ...]:
        """What an agent subscribes to."""
        return (self.deploy, self.rollback, self.desired, self.job, self.block("+"))

    def request(self, key: str, boot: str) -> str:
        """Carries requests for the artefact with this route key."""
        return f"{PREFIX}/{self.tenant}/{self.device}/off/req/{check_segment('key', key)}/{check_segment('boot', boot)}"

    def reply(self, boot: str) -> str:
        """Carries the replies."""
        return f"{PREFIX}/{self.tenant}/{self.device}/off/rep/{check_segment('boot', boot)}"


@dataclass(frozen=True)
class Topic:
    """A topic taken apart: `rest` is what follows the device, such as ("off", "req", key, boot)."""

    topics: Topics
    rest: tuple[str, ...]


def parse_topic(topic: str) -> Topic:
    """Take a topic apart and check every segment; a host trusts the device named here, never one in a payload.

    Raises:
        MessageError: Not one of headtail's topics.
    """
    parts = topic.split("/")
    if (
        len(topic) > 400
        or not 6 <= len(parts) <= 8
        or parts[:2] != ["ht", "v1"]
        or parts[4] not in ("up", "down", "off")
    ):
        raise MessageError(f"Wanted a topic {PREFIX}/<tenant>/<device>/up|down|off/.., found {topic[:100]!r}.")
    for part in parts[4:]:
        check_segment("topic", part)
    return Topic(Topics(parts[2], parts[3]), tuple(parts[4:]))


def requests_filter(key: str, *, group: str | None = "tails") -> str:
    """The subscription of a tail for one route key; workers with the same group share the requests."""
    plain = f"{PREFIX}/+/+/off/req/{check_segment('key', key)}/+"
    return plain if group is None else f"$share/{check_segment('group', group)}/{plain}"


def fleet_filters(group: str | None = None) -> tuple[tuple[str, int], ...]:
    """What a host subscribes to, with QoS.

    Birth, death and reported are retained, so every host takes them whole (a shared subscription gets nothing retained);
    the rest is shared within `group`.
    """
    shared = "" if group is None else f"$share/{check_segment('group', group)}/"
    whole = [(f"{PREFIX}/+/+/up/{kind}", 1) for kind in ("birth", "death", "reported")]
    return (*whole, *((f"{shared}{PREFIX}/+/+/up/{kind}", 1) for kind in ("hb", "job")))


def check_segment(what: str, value: str) -> str:
    """Return a topic segment, or refuse it: no wildcard, no slash, no `$`, no control character.

    Raises:
        MessageError: With the value.
    """
    if not _SEGMENT.match(value):
        raise MessageError(f"Wanted a {what} of 1 to 64 letters, digits, '_', '-' or inner '.', found {value[:80]!r}.")
    return value
