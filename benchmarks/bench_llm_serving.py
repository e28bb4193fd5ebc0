"""Parts of bench_llm about serving: shared steps, guessing, sampled guessing keeps the distribution, killed workers.

Run through `python -m benchmarks.bench_llm batch|lookup|spectr|chi_square|kills|kv`: SmolLM2, ranks are processes on this machine, one
thread each, over loopback: on a real link a pass costs more, and both sharing and guessing save more.
"""

import itertools
import random
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench_llm import Sizes, all_at_once, prompts, running, start_worker
from benchmarks.rows import Measurement
from orchestrator.demo.processes import Children
from orchestrator.tensor_parallel.checkpoint import Checkpoint
from orchestrator.tensor_parallel.engine import Engine, Piece, StepTimes
from orchestrator.tensor_parallel.generation import Generator, generate
from orchestrator.tensor_parallel.jobs import Request
from orchestrator.tensor_parallel.protocol import RunSettings
from orchestrator.tensor_parallel.sampling import SamplingOptions, probabilities
from orchestrator.tensor_parallel.text import Text

PASSAGE = (
    "The red lighthouse stood on the cliff. Its keeper, Anna Berg, lit the lamp at six each evening and wrote the date in "
    "a blue book. "
)
ROAD = "The road to the harbour is narrow, and in winter the ferry to the islands leaves only on Mondays. "
OTHER = PASSAGE.replace("red", "white").replace("Anna Berg", "Tom Hill")
QUOTING = tuple(
    f"Fix the spelling and give back the whole text, nothing else: {text}" for text in (PASSAGE + OTHER, ROAD + OTHER)
)
ROUNDS = 5
TOY_VOCABULARY, TOY_TOKENS = 50, 40_000


def batch_rows(source: Checkpoint, work: Path, _sizes: Sizes) -> list[Measurement]:
    """Eight requests together against one after the other."""
    ratios, equal = [], True
    with running(source, work, 2, slots=8, context=512) as (engine, _):
        generator = Generator(engine, None)
        asked = [
            Request(tuple(prompt), 24, ignore_end=True) for prompt in prompts(Text(engine.cluster.folder), 12)[4:12]
        ]
        alone: list[list[int]] = []
        for _ in range(ROUNDS):
            _forget(generator)
            began = time.perf_counter()
            alone = [generate(generator, one) for one in asked]
            middle = time.perf_counter()
            _forget(generator)
            restarted = time.perf_counter()
            together = all_at_once(generator, asked)
            ratios.append((middle - began) / (time.perf_counter() - restarted))
            equal &= alone == together
        generator.close()
    print(f"ratios {[f'{ratio:.2f}' for ratio in ratios]}, equal tokens: {equal}", flush=True)
    what = f"throughput of 8 requests together over one after the other (24 tokens each), SmolLM2, 2 ranks; median of {ROUNDS}"
    value = statistics.median(ratios) if equal else None
    return [
        Measurement(id="batch", what=what, value=value, unit="x", direction=">=", bar=3),
        Measurement(id="batch.equal", what="their tokens are those of each alone", value=int(equal), unit="", direction="==", bar=1),
    ]  # fmt: skip


def _forget(generator: Generator) -> None:
    """Fill every slot with something else, so that no prompt is found in a cache."""
    all_at_once(generator, [Request((5 + i, 6, 7), 1, ignore_end=True) for i in range(8)])


def lookup_rows(source: Checkpoint, work: Path, _sizes: Sizes) -> list[Measurement]:
    """Prompt lookup, greedy, on text that quotes."""
    gain, equal = _guessing(source, work, SamplingOptions())
    what = f"prompt lookup on text that quotes, greedy, SmolLM2, 2 ranks; median of {ROUNDS}"
    return [
        Measurement(id="lookup", what=what, value=gain if equal else None, unit="x", direction=">=", bar=1.8),
        Measurement(id="lookup.equal", what="tokens are those without it", value=int(equal), unit="", direction="==", bar=1),
    ]  # fmt: skip


def spectr_rows(source: Checkpoint, work: Path, _sizes: Sizes) -> list[Measurement]:
    """The same, sampled at temperature 0.7."""
    gain, equal = _guessing(source, work, SamplingOptions(temperature=0.7, seed=5))
    what = f"sampled at temperature 0.7 with 2 drafts by prompt lookup on text that quotes, SmolLM2, 2 ranks; median of {ROUNDS}"
    return [
        Measurement(id="spectr", what=what, value=gain, unit="x", direction=">=", bar=1.3),
        Measurement(id="spectr.equal", what="tokens are those that the seed gives without drafts", value=int(equal), unit="", direction="==", bar=1),
    ]  # fmt: skip


def chi_square_rows(_source: Checkpoint, _work: Path, _sizes: Sizes) -> list[Measurement]:
    """Whether sampling with guesses keeps the distribution; exact, no time is measured."""
    p_value, right = chi_square(SamplingOptions(temperature=0.7, seed=11), drafts=3)
    toy = f"{TOY_TOKENS} tokens at temperature 0.7 over a vocabulary of {TOY_VOCABULARY} with 3 drafts, {right:.0%} guessed right"
    return [
        Measurement(id="spectr.p", what=f"chi-square against the model's distribution: {toy}", value=p_value, unit="", direction=">=", bar=0.01),
    ]  # fmt: skip


def _guessing(source: Checkpoint, work: Path, sampling: SamplingOptions) -> tuple[float, bool]:
    """Median gain of guessing over the quoting prompts together, and whether all tokens are the same."""
    with running(source, work, 2, slots=2, context=512) as (engine, _):
        text, generator = Text(engine.cluster.folder), Generator(engine, text=None)
        asked = [tuple(text.chat([{"role": "user", "content": question}])) for question in QUOTING]

        def run(lookup: int) -> tuple[float, list[list[int]]]:
            wanted = [
                Request(prompt, 64, sampling=sampling, lookup=lookup, drafts=2, ignore_end=True) for prompt in asked
            ]
            for one in wanted:  # both find the prompt cached
                generate(generator, Request(one.prompt, 1, ignore_end=True))
            began = time.perf_counter()
            found = [generate(generator, one) for one in wanted]
            return time.perf_counter() - began, found

        gains, equal = [], True
        for _ in range(ROUNDS):
            plain_s, plain = run(0)
            guessed_s, guessed = run(8)
            gains.append(plain_s / guessed_s)
            equal &= plain == guessed
        generator.close()
    print(f"gains {[f'{gain:.2f}' for gain in gains]}, equal tokens: {equal}", flush=True)
    return statistics.median(gains), equal


class _ToyCluster:
    def came_back(self) -> bool:
        """Nobody was ever away."""
        return False


class ToyEngine(Engine):
    """A first-order Markov chain in an engine's place: the logits behind a token depend on it alone."""

    def __init__(self, vocabulary: int, settings: RunSettings) -> None:
        self.settings, self.times = settings, StepTimes()
        self.table = 3 * torch.randn((vocabulary, vocabulary), generator=torch.Generator().manual_seed(1))
        self.config: Any = type("Config", (), {"vocabulary": vocabulary})
        self.cluster: Any = _ToyCluster()

    running = True

    def check(self) -> None:
        """Always there."""

    def step(self, pieces: Sequence[Piece]) -> list[Any]:
        """The rows of the last tokens."""
        return [self.table[list(piece.tokens[len(piece.tokens) - piece.wanted :])] for piece in pieces]


def chi_square(
    sampling: SamplingOptions, *, drafts: int, tokens: int = TOY_TOKENS, against: SamplingOptions | None = None
) -> tuple[float, float]:
    """Draw a long text with guesses and compare every transition's count with the chain's probabilities.

    Args:
        sampling: How tokens are drawn.
        drafts: Guesses that are checked together.
        tokens: How many.
        against: What the probabilities are computed with; `sampling` when not given.

    Returns:
        The p-value (transitions expected less than 5 times are put together), and the share of guesses that were right.
    """
    per_text = 400
    engine = ToyEngine(TOY_VOCABULARY, RunSettings(slots=4, context=per_text + 8, step_tokens=256))
    generator = Generator(engine, None)
    counts = torch.zeros((TOY_VOCABULARY, TOY_VOCABULARY), dtype=torch.float64)
    for number in range(tokens // per_text):
        options = SamplingOptions(temperature=sampling.temperature, seed=(sampling.seed or 0) + number)
        text = [
            0,
            *generate(generator, Request((0,), per_text, sampling=options, lookup=4, drafts=drafts, ignore_end=True)),
        ]
        for before, after in itertools.pairwise(text):
            counts[before, after] += 1
    generator.close()
    statistic, freedom = 0.0, 0
    for before in range(TOY_VOCABULARY):
        expected = probabilities(engine.table[before].double(), against or sampling) * counts[before].sum()
        often = expected >= 5
        cells = torch.cat((expected[often], expected[~often].sum()[None]))
        found = torch.cat((counts[before][often], counts[before][~often].sum()[None]))
        if len(cells) > 1 and float(cells[-1]) < 5:  # too rare even together
            cells[-2] += cells[-1]
            found[-2] += found[-1]
            cells, found = cells[:-1], found[:-1]
        statistic += float(((found - cells) ** 2 / cells).sum())
        freedom += len(cells) - 1
    half = torch.tensor([freedom / 2, statistic / 2], dtype=torch.float64)
    counters = generator.counters
    return float(torch.special.gammaincc(half[0], half[1])), counters.accepted_tokens / max(1, counters.guessed_tokens)


def kills_rows(source: Checkpoint, work: Path, sizes: Sizes) -> list[Measurement]:
    """A worker killed at a random moment of an answer, again and again; it returns for the next request."""
    dice, equal, returned, pauses = random.Random(7), 0, 0, []
    with running(source, work, 3) as (engine, children):
        generator = Generator(engine, None)
        prompt = tuple(prompts(Text(engine.cluster.folder), 1)[0])
        wanted = generate(generator, Request(prompt, 32, ignore_end=True))
        for number in range(sizes.kills):
            name, node = f"w{1 + number % 2}", engine.cluster.nodes[1 + number % 2]
            returned += len(engine.epoch.members) == 3
            found, pause = _kill_within(generator, prompt, children, name, (dice.randrange(29), dice.random() * 0.15))
            same = found == wanted and len(engine.epoch.members) == 2
            equal += same
            pauses.append(pause)
            print(f"{number + 1}: {name} killed, same tokens over the others: {same}, pause {pause:.2f} s", flush=True)
            start_worker(children, name, work, address=node.address or "", ranks=3)
            generate(generator, Request(prompt, 2, ignore_end=True))
        returned += len(engine.epoch.members) == 3
        generator.close()
    many = f"{sizes.kills} kills at random moments, SmolLM2, 3 ranks"
    return [
        Measurement(id="kills", what=f"workers killed in mid-generation after which the survivors gave the same tokens, {many}", value=equal, unit="of 20", direction=">=", bar=20),
        Measurement(id="kills.pause", what="longest pause of a stream", value=max(pauses), unit="s", direction="<=", bar=5),
        Measurement(id="kills.returned", what="killed workers that were started again and took part in the next request", value=returned - 1, unit="of 20", direction=">=", bar=20),
    ]  # fmt: skip


def _kill_within(
    generator: Generator, prompt: tuple[int, ...], children: Children, name: str, moment: tuple[int, float]
) -> tuple[list[int], float]:
    """Kill a worker some time after a token (0: after the request); the tokens, and the longest time between two."""
    after_tokens, later_s = moment
    killer = threading.Timer(later_s, children.stop, (name,), {"kill": True})
    seen, last, longest = 0, time.perf_counter(), 0.0

    def take(event: Any) -> None:
        nonlocal seen, last, longest
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
        seen += 1
        if seen == after_tokens:
            killer.start()

    if after_tokens == 0:
        killer.start()
    found = generate(generator, Request(prompt, 32, ignore_end=True), on_event=take)
    killer.join()
    return found, longest


def kv_rows(source: Checkpoint, work: Path, _sizes: Sizes) -> list[Measurement]:
    """What an int8 cache costs: logits behind every token of a long prompt against those with the exact cache."""
    logits, cached = [], []
    for kind in ("float32", "int8"):
        with running(source, work, 2, slots=1, kv_cache=kind) as (engine, _):
            prompt = prompts(Text(engine.cluster.folder), 4)[3]
            chunks = [tuple(prompt[at : at + 256]) for at in range(0, len(prompt), 256)]
            pieces = [Piece(0, 256 * number, chunk, len(chunk)) for number, chunk in enumerate(chunks)]
            logits.append(torch.cat([engine.step([piece])[0] for piece in pieces]))
            cached.append(engine.runner.memory.cache)
    exact, small = logits
    same = float((exact.argmax(-1) == small.argmax(-1)).double().mean())
    worst = float((exact - small).abs().max() / exact.std())
    where = f"a prompt of {len(exact)} tokens, SmolLM2"
    return [
        Measurement(id="kv_int8.bytes", what="int8 cache of the master over the exact one", value=cached[1] / cached[0], unit="x", direction="info"),
        Measurement(id="kv_int8.agree", what=f"places where it gives the same most probable token, {where}", value=100 * same, unit="%", direction="info"),
        Measurement(id="kv_int8.logits", what="largest difference of a logit, in standard deviations of the logits", value=worst, unit="", direction="info"),
    ]  # fmt: skip


PARTS: dict[str, Callable[[Checkpoint, Path, Sizes], list[Measurement]]] = {
    "batch": batch_rows,
    "lookup": lookup_rows,
    "spectr": spectr_rows,
    "chi_square": chi_square_rows,
    "kills": kills_rows,
    "kv": kv_rows,
}
