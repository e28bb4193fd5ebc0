"""What is known of a board. Null is unknown, and unknown never means "fits"."""

from typing import Literal

import msgspec

BoardKind = Literal["linux-gpu", "linux-cpu", "mcu", "mcu-emulated"]


class DeviceProfile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a planner may assume about one board. Sizes in bytes, rates per second, power in watts."""

    id: str
    name: str
    kind: BoardKind
    source: str  # where the figures come from, unless `sources` names another place for a field
    sources: dict[str, str] = {}  # field -> where that figure comes from
    cpu: str | None = None
    isa: str | None = None
    cpu_cores: int | None = None
    cpu_clock_hz: int | None = None
    simd: str | None = None
    gpu: str | None = None
    cuda_cores: int | None = None
    tensor_cores: int | None = None
    gpu_clock_hz: int | None = None
    cuda_compute_capability: str | None = None
    npu: str | None = None
    peak_int8_sparse_ops_per_s: int | None = None
    peak_int8_dense_ops_per_s: int | None = None
    peak_fp16_flops: int | None = None
    peak_fp32_flops: int | None = None
    peak_other: str | None = None  # a vendor figure whose precision is not stated
    ram_bytes: int | None = None  # external or main memory
    ram_type: str | None = None
    memory_bandwidth_bytes_per_s: int | None = None
    sram_bytes: int | None = None  # on-chip, of a microcontroller
    flash_bytes: int | None = None
    l2_cache_bytes: int | None = None
    l3_cache_bytes: int | None = None
    idle_power_w: float | None = None
    active_power_w: float | None = None
    power_modes_w: tuple[int, ...] | None = None
    runtimes: tuple[str, ...] = ()
    power_sensor: str | None = None
    usable: bool = True  # false: known, but nothing can be exported to it; `notes` says why
    notes: str | None = None

    def source_of(self, field: str) -> str:
        """Where the figure of `field` comes from."""
        return self.sources.get(field, self.source)

    @property
    def is_microcontroller(self) -> bool:
        """True for bare-metal targets, emulated ones included."""
        return self.kind in ("mcu", "mcu-emulated")
