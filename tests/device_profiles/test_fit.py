import json
from pathlib import Path

import pytest

from device_profiles import BoardError, DeviceProfile, FitError, list_boards, load_board
from device_profiles.fit import Needs, check_fit, require_fit, resolve_board


def _mcu(**changes):
    values = {"sram_bytes": 1000, "flash_bytes": 5000, "runtimes": ("tflite-micro",)} | changes
    return DeviceProfile(id="b", name="B", kind="mcu", source="test", **values)


def _needs(**changes):
    return Needs(**({"name": "net", "engine": "tflite-micro", "flash_bytes": 4000, "ram_bytes": 900} | changes))


def test_exact_size_fits_and_one_byte_more_does_not():
    assert check_fit(_needs(ram_bytes=1000, flash_bytes=5000), _mcu()).fits
    fit = check_fit(_needs(ram_bytes=1001), _mcu())
    assert fit.verdict == "does not fit"
    (memory,) = [part for part in fit.parts if part.part == "memory"]
    assert memory.gap_bytes == 1


@pytest.mark.parametrize(
    ("board", "needs"),
    [
        ({"sram_bytes": None}, {}),
        ({"flash_bytes": None}, {}),
        ({}, {"ram_bytes": None}),
        ({"runtimes": ()}, {}),
        ({}, {"ops": ("CONV_2D",)}),
    ],
)
def test_unknown_never_fits(board, needs):
    fit = check_fit(_needs(**needs), _mcu(**board))
    assert fit.verdict == "unknown"
    assert not fit.fits
    with pytest.raises(FitError, match="unknown"):
        require_fit(fit)


def test_what_does_not_fit_outweighs_unknown_and_names_the_gap():
    fit = check_fit(_needs(flash_bytes=5100), _mcu(sram_bytes=None))
    assert fit.verdict == "does not fit"
    with pytest.raises(FitError, match="100 B over"):
        require_fit(fit)


def test_operators_and_engine():
    assert check_fit(_needs(ops=("CONV_2D",)), _mcu(), supported_ops=["CONV_2D"]).fits
    fit = check_fit(_needs(ops=("CONV_2D", "LSTM")), _mcu(), supported_ops=["CONV_2D"])
    assert "LSTM" in fit.parts[-1].why
    assert check_fit(_needs(engine="tensorrt"), _mcu()).verdict == "does not fit"
    assert check_fit(_needs(engine="litert"), _mcu()).verdict == "does not fit"


def test_linux_board_is_judged_by_ram_and_an_unusable_board_never_fits():
    needs = _needs(engine="onnxruntime", ram_bytes=1 << 20)
    assert check_fit(needs, load_board("rpi-5-8gb")).fits
    assert check_fit(needs, load_board("rpi-5")).verdict == "unknown"
    assert check_fit(_needs(), _mcu(usable=False)).verdict == "does not fit"


def test_every_shipped_board_gives_an_answer():
    for board in list_boards():
        for engine in ("onnxruntime", "litert", "tensorrt", "tflite-micro", "generated-c"):
            assert check_fit(_needs(engine=engine), board).verdict in ("fits", "does not fit", "unknown")


def test_negative_size_is_refused():
    with pytest.raises(FitError, match="-1"):
        check_fit(_needs(ram_bytes=-1), _mcu())


def test_board_file(tmp_path: Path):
    good = {"id": "mine", "name": "Mine", "kind": "mcu", "source": "me", "sram_bytes": 8}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(good))
    assert resolve_board(None, path).sram_bytes == 8
    path.write_text(json.dumps(good | {"colour": "red"}))
    with pytest.raises(BoardError, match="colour"):
        resolve_board(None, path)
    for board, file in ((None, None), ("rpi-5", path), (None, tmp_path / "none.json")):
        with pytest.raises(BoardError):
            resolve_board(board, file)
