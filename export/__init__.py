"""A model becomes an artefact for a target: ONNX, LiteRT, TensorRT input, C."""
