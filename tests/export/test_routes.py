import pytest

from device_profiles import list_boards, load_board
from export.errors import UnsupportedRouteError
from export.routes import engines_of, find_route


@pytest.mark.parametrize(
    ("source", "board", "asked", "expected"),
    [
        ("torch", "rpi-4b", {}, ("onnx", "fp32", "onnxruntime")),
        ("torch", "rpi-4b", {"calibrated": True}, ("onnx", "u8s8", "onnxruntime")),
        ("torch", "rpi-4b", {"engine": "litert", "precision": "int8"}, ("tflite", "int8", "litert")),
        ("torch", "jetson-orin-nx-16gb", {}, ("onnx", "fp16", "tensorrt")),
        ("torch", "jetson-orin-nx-16gb", {"precision": "int8"}, ("onnx", "s8s8", "tensorrt")),
        (
            "onnx",
            "jetson-orin-nx-16gb",
            {"engine": "onnxruntime", "precision": "int8"},
            ("onnx", "u8s8", "onnxruntime"),
        ),
        ("torch", "nucleo-h743zi", {}, ("tflite", "int8", "tflite-micro")),
        ("tflite", "rpi-4b", {}, ("tflite", "fp32", "litert")),
        ("tflite", "qemu-mps2-an385", {}, ("tflite", "int8", "tflite-micro")),
    ],
)
def test_the_route_that_a_user_would_expect(source, board, asked, expected):
    route = find_route(source, load_board(board), **asked)
    assert (route.format, route.name, route.engine) == expected


@pytest.mark.parametrize(
    ("source", "board", "asked", "said"),
    [
        ("onnx", "nucleo-h743zi", {}, r"module:function or a \.tflite"),
        ("onnx", "rpi-4b", {"engine": "litert"}, r"--engine onnxruntime"),
        ("tflite", "jetson-orin-nx-16gb", {"engine": "tensorrt"}, r"module:function or an \.onnx"),
        ("torch", "nucleo-h743zi", {"precision": "fp32"}, "Wanted int8"),
        ("torch", "rpi-4b", {"engine": "tensorrt"}, "Wanted engine onnxruntime"),
        ("torch", "rpi-4b", {"engine": "litert", "precision": "fp16"}, "Wanted fp32 or int8"),
        ("torch", "qemu-mps2-an521", {}, "qemu-mps2-an521"),
    ],
)
def test_a_way_that_does_not_exist_names_the_one_that_does(source, board, asked, said):
    with pytest.raises(UnsupportedRouteError, match=said):
        find_route(source, load_board(board), **asked)


def test_every_usable_board_can_be_reached_from_torch():
    for board in list_boards():
        if board.usable:
            assert find_route("torch", board).engine == engines_of(board)[0]
