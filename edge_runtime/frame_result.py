"""What became of one frame, as the agent publishes it."""

from device_profiles.errors import EdgeError
from edge_runtime.messages import Result
from edge_runtime.pipeline import Outcome
from edge_runtime.sources import Frame


def result_of(boot: str, frame: Frame, outcome: Outcome) -> Result:
    """Of a frame that was answered."""
    answer = outcome.answer
    return Result(
        boot=boot,
        seq=frame.seq,
        frame=frame.name[:500],
        source=answer.source,
        top=outcome.top,
        error=None if answer.why_local is None else answer.why_local[:500],
        ms=answer.breakdown.as_dict(),
        plan_id=answer.plan_id,
        sent=answer.bytes_sent,
        agrees=outcome.agrees,
    )


def result_of_error(boot: str, frame: Frame, error: EdgeError) -> Result:
    """Of a frame that nobody answered."""
    text = f"{type(error).__name__}: {error}"[:500]
    return Result(boot=boot, seq=frame.seq, frame=frame.name[:500], source="error", error=text)
