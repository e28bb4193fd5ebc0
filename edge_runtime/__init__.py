"""What runs on a device: artefacts, engines, wire frame, messages, agent, offload. No torch, no onnx."""
