"""Calibrate a board: measure chains of convolutions on it, fit a roofline for each kernel class, cross-validate."""

import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from device_profiles.measurement import NoisyProfileError, Profile, ProfileError, load_profile
from edge_runtime.artefact import open_artefact
from edge_runtime.profile_in_turn import profile_in_turn
from edge_runtime.profiler import ProfileOptions
from export.chain_nets import Precision, chain, write_net
from split.predict import MIN_NETWORKS, Calibration, calibrate, samples_from
from split.predict_memory import MIN_SAMPLES, MemoryModel, fit_memory, memory_sample
from split.roofline import PredictError

CHAINS = 16
ROUNDS = 18  # in each of which every chain has its turn
RUNS = 3  # of each chain in a round, plain and instrumented


@dataclass(frozen=True)
class Measured:
    """Profiles of chains; `noisy` of them stayed disturbed and are not among them."""

    profiles: tuple[Profile, ...]
    noisy: tuple[Profile, ...] = ()


def write_chains(folder: Path, *, precision: Precision, count: int = CHAINS) -> list[Path]:
    """Chains as artefacts, to be measured on another board with `edge-agent profile`.

    Raises:
        PredictError: No number of them.
    """
    if count < 1:
        raise PredictError(f"Wanted at least 1 chain to write, found {count}. Give more (--chains), or leave it out.")
    found = []
    for seed in range(count):
        data, size = chain(seed, precision)
        found.append(write_net(folder, f"chain-{precision}-{seed:02d}", data, size, precision).folder)
    return found


def measure_chains(
    *, precision: Precision, threads: int, count: int = CHAINS, on_step: Callable[[str], None] = lambda _text: None
) -> Measured:
    """Measure on this machine, each chain in a process of its own, in turn: all see the same speeds of the machine.

    Raises:
        PredictError: Too few of them for a calibration.
        EngineError, ProfilerError: A chain could not be measured.
    """
    if count < MIN_NETWORKS:
        raise PredictError(
            f"Wanted at least {MIN_NETWORKS} chains to fit and check, found {count}. Give more (--chains), or leave it out."
        )
    options = ProfileOptions(threads=threads, runs=ROUNDS * RUNS, seconds=0.0, limit_s=ROUNDS * 1.0, kernels_only=True)
    with tempfile.TemporaryDirectory(prefix="headtail-chains-") as folder:
        chains = [open_artefact(path) for path in write_chains(Path(folder), precision=precision, count=count)]
        found = profile_in_turn(chains, options, rounds=ROUNDS, on_step=on_step)
    return sort_profiles(found)


def read_profiles(folder: Path) -> Measured:
    """Profiles that `edge-agent profile` wrote on the board: every .json of a folder.

    Raises:
        ProfileError: There is none, or one of them is not a profile.
    """
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise ProfileError(
            f"Wanted profiles of the chains (.json) in {folder}, found none. Run `edge-agent profile CHAIN --out FILE` on the "
            "board and bring the files."
        )
    return sort_profiles([load_profile(path) for path in paths])


def sort_profiles(found: Sequence[Profile]) -> Measured:
    """Quiet ones and others."""
    return Measured(
        tuple(one for one in found if one.status == "ok"), tuple(one for one in found if one.status != "ok")
    )


def fit(measured: Measured) -> Calibration:
    """Fit and cross-validate.

    Raises:
        NoisyProfileError: More than a quarter of the chains was disturbed.
        PredictError, ProfileMismatchError: As `split.predict`.
    """
    total = len(measured.profiles) + len(measured.noisy)
    if 4 * len(measured.noisy) > total:
        why = "; ".join(measured.noisy[0].remarks) or measured.noisy[0].status
        raise NoisyProfileError(
            f"Wanted at least three quarters of the chains undisturbed, found {len(measured.noisy)} of {total} noisy "
            f"({why}). Stop other work on the board and calibrate again."
        )
    return fit_all(measured.profiles)


def fit_all(profiles: Sequence[Profile]) -> Calibration:
    """As `fit`, whatever the profiles' status."""
    samples, wholes = samples_from(profiles)
    first = profiles[0]
    found = calibrate(
        samples,
        board=first.board,
        precision=first.precision,
        engine=first.engine,
        wholes=wholes,
        power_mode=first.power_mode,
    )
    return msgspec.structs.replace(found, memory=_memory(profiles))


def _memory(profiles: Sequence[Profile]) -> MemoryModel | None:
    """Memory of the board's processes; null where it was not measured, or of too few networks."""
    samples = [one for one in map(memory_sample, profiles) if one is not None]
    bare = [one.memory.rss_bare for one in profiles if one.memory.rss_bare is not None]
    if len(samples) < MIN_SAMPLES or not bare:
        return None
    return msgspec.structs.replace(fit_memory(samples), bare_bytes=round(statistics.median(bare)))
