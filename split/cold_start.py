"""A prediction without any measurement: from the board file alone, with the wide interval that this deserves.

A vendor's peak gives `datasheet`; where there is none, peak = cores x clock x multiply-accumulates per cycle, `derived`.
Both are multiplied by a stated utilisation.
"""

from device_profiles.schema import DeviceProfile
from split.predict import Calibration, Interval, KernelClass, Origin
from split.roofline import PredictError, Roofline

UTILISATION = 0.3  # of a peak, by a convolution: an assumption, stated with every prediction
BANDWIDTH_UTILISATION = 0.5
SPREAD = Interval(low=1 / 3, high=3.0)  # stated, not measured
_OVERHEAD_MS = 0.005

# Words in a board's `simd` or `isa` -> multiply-accumulates per cycle and core, (fp32, int8).
# 128-bit NEON: one 4-lane fused multiply-add; int8 through 16-bit lanes, no dot product assumed. Helium: Arm's figures
# for Cortex-M55 (2 x 32 bit, 8 x 8 bit). DSP extension: SMLAD, two 16-bit products. Else: one.
_PER_CYCLE = (("neon", 4.0, 8.0), ("helium", 2.0, 8.0), ("dsp", 1.0, 2.0), ("x86-64", 8.0, 16.0), ("", 1.0, 1.0))


def cold_start(board: DeviceProfile, *, precision: str, threads: int = 1) -> Calibration:
    """What a board file says of speed.

    Args:
        board: With a peak, or with clock and core count.
        precision: fp32, fp16 or int8.
        threads: CPU threads; more than there are cores count as the cores.

    Raises:
        PredictError: Neither a peak of that precision nor a clock is known.
    """
    if threads < 1:
        raise PredictError(f"Wanted at least 1 thread, found {threads}.")
    peak, origin, why = _peak(board, precision, threads)
    bandwidth = board.memory_bandwidth_bytes_per_s
    remarks = [
        f"{origin}: {why}; utilisation {UTILISATION} assumed, a factor of 3 either way is possible. Calibrate on the board."
    ]
    if bandwidth is None:
        remarks.append(f"The memory bandwidth of {board.id} is not known: memory-bound kernels are predicted too fast.")
    if threads > 1 and origin == "derived":
        remarks.append(f"{threads} threads are taken to scale with the cores ({board.cpu_cores or 1}).")
    roofline = Roofline(
        macs_per_ms=peak * UTILISATION / 1e3,
        bytes_per_ms=None if bandwidth is None else bandwidth * BANDWIDTH_UTILISATION / 1e3,
        overhead_ms=_OVERHEAD_MS,
    )
    return Calibration(
        board=board.id,
        precision=precision,
        engine=None,
        threads=threads,
        origin=origin,
        classes=(),
        other=KernelClass(kind="other", roofline=roofline, interval=SPREAD),
        interval=SPREAD,
        remarks=tuple(remarks),
    )


def _peak(board: DeviceProfile, precision: str, threads: int) -> tuple[float, Origin, str]:
    """Multiply-accumulates per second, where from, and how in words. A multiply-accumulate is two operations."""
    published = {
        "fp32": (("peak_fp32_flops", board.peak_fp32_flops),),
        "fp16": (("peak_fp16_flops", board.peak_fp16_flops), ("peak_fp32_flops", board.peak_fp32_flops)),
        "int8": (("peak_int8_dense_ops_per_s", board.peak_int8_dense_ops_per_s),),
    }.get(precision)
    if published is None:
        raise PredictError(f"Wanted fp32, fp16 or int8, found precision {precision!r}.")
    for field, operations in published:
        if operations is not None:
            return operations / 2, "datasheet", f"{field} = {operations:g} ({board.source_of(field)})"
    if board.cpu_clock_hz is None:
        raise PredictError(
            f"Wanted a {precision} peak or a clock of {board.id}, found neither in its file. "
            "Calibrate on the board, or add the figures to a board file (--board-file)."
        )
    text = f"{board.simd or ''} {board.isa or ''}".lower()
    word, real, integer = next(one for one in _PER_CYCLE if one[0] in text)
    per_cycle = integer if precision == "int8" else real
    cores = min(threads, board.cpu_cores or 1)
    how = f"{cores} core(s) x {board.cpu_clock_hz / 1e9:g} GHz x {per_cycle:g} multiply-accumulates per cycle ({word or 'scalar'})"
    return cores * board.cpu_clock_hz * per_cycle, "derived", how
