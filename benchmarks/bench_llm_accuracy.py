"""Part `accuracy` of bench_llm: what smaller payloads and packed weights cost, on the first 512 tokens of this project's licence.

For each kind: how far the perplexity is from that of exact float32, and at how many places the likeliest token is another.
"""

import math
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench_llm import Sizes, running
from benchmarks.rows import ROOT, Measurement
from orchestrator.tensor_parallel.checkpoint import Checkpoint
from orchestrator.tensor_parallel.engine import Engine, Piece
from orchestrator.tensor_parallel.text import Text

TOKENS = 512
PAYLOADS, WEIGHTS = ("float16", "int8"), ("int8", "int4")


def accuracy_rows(source: Checkpoint, work: Path, _sizes: Sizes) -> list[Measurement]:
    """Over 2 ranks."""
    rows: list[Measurement] = []
    exact: Any = None
    for title, weights, payload in (
        ("", "float32", "float32"),
        *((f"payload_{kind}", "float32", kind) for kind in PAYLOADS),
        *((f"weights_{kind}", kind, "float32") for kind in WEIGHTS),
    ):
        folder = work / weights
        folder.mkdir(exist_ok=True)
        with running(source, folder, 2, weights=weights, payload=payload, slots=1) as (engine, _):
            tokens = Text(engine.cluster.folder).encode((ROOT / "LICENSE").read_text())[:TOKENS]
            found = _logits(engine, tokens)
        if exact is None:
            exact = found
            continue
        base, this = _perplexity(exact, tokens), _perplexity(found, tokens)
        other = float((found.argmax(-1) != exact.argmax(-1)).float().mean())
        what = f"perplexity over that of exact float32, minus 1, {TOKENS} tokens of the licence, SmolLM2, 2 ranks: {this:.3f} against {base:.3f}; the likeliest token is another at {100 * other:.1f} % of the places"
        rows.append(
            Measurement(id=f"accuracy.{title}", what=what, value=this / base - 1, unit="", direction="info", peer="our float32")
        )  # fmt: skip
        print(f"{title}: {what}", flush=True)
    return rows


def _logits(engine: Engine, tokens: list[int]) -> Any:
    at_once, out = engine.settings.step_tokens, []
    for start in range(0, len(tokens), at_once):
        piece = tuple(tokens[start : start + at_once])
        out.append(engine.step([Piece(0, start, piece, len(piece))])[0])
    return torch.cat(out)


def _perplexity(logits: Any, tokens: list[int]) -> float:
    loss = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(tokens[1:]))
    return math.exp(float(loss))
