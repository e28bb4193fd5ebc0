"""headtail from Python: export a small network, cut it, serve its tail, and ask it through a broker.

python examples/python_api.py FOLDER
"""

import sys
from pathlib import Path

import numpy as np

import headtail


def main(folder: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parent))  # for own_model
    generator = np.random.default_rng(0)
    pictures = generator.uniform(-1, 1, (64, 3, 32, 32)).astype(np.float32)  # as own_model prepares them
    np.savez(folder / "calibration.npz", input=pictures)

    options = headtail.ExportOptions(precision="int8", calibration=folder / "calibration.npz")
    whole = headtail.export("own_model:digits", "this", options, out=folder / "whole")
    cheapest = min(headtail.cuts(whole.folder).cuts, key=lambda cut: cut.payload_bytes)
    head, tail = headtail.cut(whole.folder, cheapest.names, out=folder / "pair")
    unsplit = headtail.open_session(whole)

    measured = headtail.profile(whole, headtail.ProfileOptions(runs=20, seconds=0.1))
    print(f"{measured.whole.p50:.3f} ms here, {measured.mapped_share:.0%} of the kernels' time in named nodes")
    planned = headtail.plan(whole.folder, headtail.PlanOptions(link="20mbit/15ms", device="rpi-4b", host="rpi-5-4gb"))
    print(planned.plan.reason)

    with (
        headtail.start_broker() as broker,
        headtail.serve_tail(broker.url, tail.folder),
        headtail.Offloader(broker.url, "desk", head=head, fallback=whole) as offloader,
    ):
        offloader.wait_connected()
        for picture in pictures[:5]:
            answer = offloader.infer(picture[None], deadline_ms=1000)
            equal = np.array_equal(answer.outputs[0], unsplit.run([picture[None]])[0])
            print(
                f"{answer.source}: class {answer.outputs[0].argmax()}, {answer.bytes_sent} B sent, {answer.breakdown.total_ms:.1f} ms, equal to unsplit: {equal}"
            )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
