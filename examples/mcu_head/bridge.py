"""A microcontroller's head, in QEMU, and a tail on the host: every frame that the firmware prints is answered.

    headtail export vww.tflite --target stm32f746g-disco --out build/vww
    headtail split build/vww --at 10 --codec rans --calibration pictures --out cut
    headtail broker & headtail tail serve cut/tail --broker mqtt://127.0.0.1 &
    python examples/mcu_head/bridge.py cut/head --broker mqtt://127.0.0.1

The firmware is the head's own proof program with frames printed: on a real board the same bytes leave a serial port.
"""

import argparse
import json
import os
import queue
import subprocess
import sys
from pathlib import Path

import numpy as np

from edge_runtime.artefact import open_artefact
from edge_runtime.messages import Topics
from edge_runtime.mqtt import LinkOptions, MqttLink
from edge_runtime.wire import (
    REPLY_BYTES,
    Envelope,
    Limits,
    Status,
    decode_frame,
    decode_tensors,
    pack_envelope,
    unpack_reply,
)

BUDGET_MS = 5000
REPLY_LIMITS = Limits(payload_bytes=1 << 24, tensor_bytes=1 << 24)


def firmware_frames(head: Path, machine: str) -> list[bytes]:
    """Build the head for a simulated board, run it on its golden inputs and collect the frames that it prints."""
    proof = next((head / "proof").glob("proof_*_head.c"))
    command = ["make", "-s", "-C", str(head), "qemu", f"PROOF=proof/{proof.name}", "EXTRA=-DHH_PRINT_FRAMES"]
    # A build folder of its own: the default one may hold the proof program without printing.
    done = subprocess.run(
        [*command, f"MACHINE={machine}", f"BUILD=../{head.name}.bridge"], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        sys.exit(f"the firmware failed: {(done.stdout + done.stderr)[-800:]}")
    print("\n".join(line for line in done.stdout.splitlines() if not line.startswith("frame ")), file=sys.stderr)
    return [bytes.fromhex(line[6:]) for line in done.stdout.splitlines() if line.startswith("frame ")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("head", type=Path, help="head artefact of a microcontroller")
    parser.add_argument("--broker", default="mqtt://127.0.0.1")
    parser.add_argument("--device", default="mcu-1")
    parser.add_argument("--machine", default="mps2-an386")
    options = parser.parse_args()
    artefact = open_artefact(options.head)
    frames = firmware_frames(options.head.resolve(), options.machine)

    answers: queue.Queue[bytes] = queue.Queue()
    boot = os.urandom(8).hex()
    topics = Topics("default", options.device)
    link = MqttLink(
        options.broker,
        LinkOptions(subscriptions=((topics.reply(boot), 0),)),
        lambda _t, payload, _q: answers.put(payload),
    )
    with link.start():
        link.wait_connected(10.0)
        for number, frame in enumerate(frames):
            request_id = boot.encode()[:8] + number.to_bytes(8, "little")
            envelope = pack_envelope(Envelope(request_id, BUDGET_MS))
            link.publish_pieces(topics.request(artefact.key, boot), (envelope, frame), 0)
            reply = answers.get(timeout=BUDGET_MS / 1000)
            head = unpack_reply(reply)
            if head.status is not Status.OK or head.request_id != request_id:
                sys.exit(
                    f"frame {number}: the tail says {head.status.name}: {reply[REPLY_BYTES:].decode(errors='replace')}"
                )
            outputs = decode_tensors(decode_frame(memoryview(reply)[REPLY_BYTES:], REPLY_LIMITS))
            scores = np.asarray(outputs[0]).reshape(-1)
            row = {"frame": number, "bytes": len(frame), "top": int(scores.argmax()), "scores": scores.tolist()[:10]}
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
