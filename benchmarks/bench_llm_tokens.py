"""Part `tokens` of bench_llm: greedy tokens and logits of every configuration against transformers in float32.

Resumable: what a configuration gave, and what transformers says, is kept in the rig's cache under the hash of what
computes, the model and the protocol; a run that was interrupted goes on with the next configuration. Nothing is kept across a change.

The reference is transformers' own greedy text. It is found by checking a guess (ours): where one pass over prompt and guess
chooses the guess at every place, the guess is the greedy text; from the first difference on transformers goes on alone.
"""

import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch

from benchmarks.bench_llm import Sizes, all_at_once, prompts, reference_model, running
from benchmarks.llm_rig import CACHE
from benchmarks.rows import ROOT, Measurement
from orchestrator.tensor_parallel.checkpoint import Checkpoint
from orchestrator.tensor_parallel.engine import Engine, Piece
from orchestrator.tensor_parallel.generation import Generator
from orchestrator.tensor_parallel.jobs import Request
from orchestrator.tensor_parallel.text import Text

KEPT = CACHE / "tokens"
SLOTS, CONTEXT = 16, 1408
COMPUTED_BY = (
    "blocks.py", "buffers.py", "collectives.py", "csrc/few.c", "few.py", "from_gguf.py", "gloo_collective.py", "kernels.py", "layout.py", "loads.py", "partition.py",
    "payload.py", "rank_runner.py", "sampling.py", "sharding.py", "window.py",
)  # fmt: skip
MARGIN = 1e-4  # below it two tokens are as good as each other in float32
CHECKED = (1, 5)  # prompts whose logits are compared at every place: two turns, and one


@dataclass(frozen=True)
class Configuration:
    """One way to run the model."""

    ranks: int
    collective: str
    streams: bool = False  # under a limit that keeps half of the weights
    paper: bool = False

    @property
    def name(self) -> str:
        """For messages and for the cache."""
        kind = "paper" if self.paper else self.collective
        return f"{self.ranks} {kind}{' window' if self.streams else ''}"


CONFIGURATIONS = (
    *(Configuration(ranks, "mesh") for ranks in (1, 2, 3, 4, 5)),
    *(Configuration(ranks, "star") for ranks in (2, 3, 5)),
    *(Configuration(ranks, "gloo") for ranks in (2, 3)),
    *(Configuration(ranks, "mesh", streams=True) for ranks in (1, 2, 3)),
    *(Configuration(ranks, "paper", paper=True) for ranks in (2, 3)),
)


class Outcome(msgspec.Struct, frozen=True):
    """What one configuration gave."""

    texts: list[list[int]]
    logits: float  # largest difference
    seconds: float


class Reference:
    """Transformers' greedy texts and margins, each found once."""

    def __init__(self, source: Checkpoint, folder: Path) -> None:
        self._source, self._folder = source, folder
        self._model: Any = None

    def greedy(self, place: int, prompt: Sequence[int], guess: Sequence[int], count: int) -> list[tuple[int, float]]:
        """Tokens, and how far each is ahead of the runner-up."""
        path = self._folder / f"reference{place}.json"
        if path.is_file():
            return [(token, margin) for token, margin in json.loads(path.read_bytes())]
        logits = self.logits([*prompt, *guess])[len(prompt) - 1 :]
        out: list[tuple[int, float]] = []
        for row, guessed in zip(logits, [*guess, -1], strict=True):
            if len(out) == count:
                break
            out.append(_best(row))
            if out[-1][0] != guessed:
                break
        if len(out) < count:
            out = self._alone([*prompt, *(token for token, _ in out)], out, count)
        _keep(path, json.dumps(out).encode())
        return out

    def logits(self, tokens: Sequence[int]) -> Any:
        """Of every place, (n, vocabulary)."""
        self._model = self._model or reference_model(self._source)
        with torch.inference_mode():
            return self._model(torch.tensor([tokens])).logits[0]

    def _alone(self, tokens: list[int], out: list[tuple[int, float]], count: int) -> list[tuple[int, float]]:
        past, following = None, torch.tensor([tokens])
        with torch.inference_mode():
            while len(out) < count:
                answer = self._model(following, past_key_values=past, use_cache=True)
                past = answer.past_key_values
                out.append(_best(answer.logits[0, -1]))
                following = torch.tensor([[out[-1][0]]])
        return out


def tokens_rows(source: Checkpoint, _work: Path, sizes: Sizes) -> list[Measurement]:
    """Run every configuration that the cache lacks, then compare all of them."""
    folder, work = KEPT / _protocol(source, sizes), KEPT / "sets"
    folder.mkdir(parents=True, exist_ok=True)
    work.mkdir(exist_ok=True)
    reference = Reference(source, folder)
    worst, compared, listed, different = 0.0, 0, [], 0
    for one in CONFIGURATIONS:
        outcome, asked = _outcome(one, source, work, sizes, reference, folder)
        worst = max(worst, outcome.logits)
        for place, (prompt, found) in enumerate(zip(asked, outcome.texts, strict=True)):
            wanted = reference.greedy(place, prompt, found, sizes.tokens)
            at = first_difference(found, wanted)
            compared += len(wanted)
            if at is not None:
                different += wanted[at][1] >= MARGIN
                listed.append(f"{one.name}: prompt {place}, token {at}, margin {wanted[at][1]:.1e}")
        print(f"{one.name}: {outcome.seconds:.0f} s, logits within {outcome.logits:.1e}", flush=True)
    print("\n".join(listed) or "no token differs", flush=True)
    names = ", ".join(one.name for one in CONFIGURATIONS)
    close = f"; differing where the margin is smaller: {'; '.join(listed) or 'none'}"
    peer = {"peer": "transformers, float32", "peer_version": _version()}
    wanted_count = 32 * 128 * len(CONFIGURATIONS)
    return [
        Measurement(id="tokens.different", what=f"greedy texts that differ where the reference's margin is >= 1e-4, {sizes.prompts} prompts x {sizes.tokens} tokens, ranks and collective: {names}{close}", value=different, unit="texts", direction="==", bar=0, **peer),
        Measurement(id="tokens.compared", what="tokens compared", value=compared, unit="tokens", direction=">=", bar=wanted_count, **peer),
        Measurement(id="tokens.logits", what=f"largest difference of a logit, prompts {CHECKED} with their answers at every place, all configurations", value=worst, unit="", direction="<=", bar=1e-3, **peer),
    ]  # fmt: skip


def _outcome(
    one: Configuration, source: Checkpoint, work: Path, sizes: Sizes, reference: Reference, folder: Path
) -> tuple[Outcome, list[list[int]]]:
    path, asked_path = folder / f"{one.name.replace(' ', '-')}.json", folder / "prompts.json"
    if path.is_file():
        return msgspec.json.decode(path.read_bytes(), type=Outcome), json.loads(asked_path.read_bytes())
    began = time.perf_counter()
    settings: dict[str, Any] = {"slots": SLOTS, "context": CONTEXT, "collective": one.collective, "paper": one.paper}
    if one.collective == "gloo":
        settings["gloo_port"] = 29400 + one.ranks
    with running(source, work, one.ranks, keep=0.5 if one.streams else None, **settings) as (engine, _):
        if one.streams and not engine.runner.window.streams:
            raise AssertionError("the limit kept everything in memory")
        asked = prompts(Text(engine.cluster.folder), sizes.prompts)
        generator = Generator(engine, None)
        texts = all_at_once(generator, [Request(tuple(p), sizes.tokens, ignore_end=True) for p in asked])
        generator.close()
        largest = max(
            _logit_difference(engine, [*asked[place], *texts[place]], reference)
            for place in CHECKED
            if place < len(asked)
        )
    outcome = Outcome(texts, largest, time.perf_counter() - began)
    _keep(asked_path, json.dumps(asked).encode())
    _keep(path, msgspec.json.encode(outcome))
    return outcome, asked


def _logit_difference(engine: Engine, tokens: list[int], reference: Reference) -> float:
    ours, at_once = [], engine.settings.step_tokens
    for start in range(0, len(tokens), at_once):
        piece = tuple(tokens[start : start + at_once])
        ours.append(engine.step([Piece(0, start, piece, len(piece))])[0])
    return float((torch.cat(ours) - reference.logits(tokens)).abs().max())


def first_difference(found: Sequence[int], wanted: Sequence[tuple[int, float]]) -> int | None:
    """Where a text leaves the reference; null where it does not."""
    for at, (token, _) in enumerate(wanted):
        if at >= len(found) or found[at] != token:
            return at
    return None


def _best(row: Any) -> tuple[int, float]:
    best = row.topk(2)
    return int(best.indices[0]), float(best.values[0] - best.values[1])


def _protocol(source: Checkpoint, sizes: Sizes) -> str:
    digest = hashlib.sha256(f"{sizes.prompts} {sizes.tokens} {source.path.stat().st_size}".encode())
    for name in COMPUTED_BY:
        digest.update((ROOT / "orchestrator" / "tensor_parallel" / name).read_bytes())
    digest.update(Path(__file__).read_bytes())
    return digest.hexdigest()[:16]


def _keep(path: Path, data: bytes) -> None:
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    partial.write_bytes(data)
    partial.replace(path)


def _version() -> str:
    import transformers

    return str(transformers.__version__)
