import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from edge_runtime.cli import main
from edge_runtime.install import InstallError, InstallOptions, hidden_places, install, unit_text
from edge_runtime.watchdog import Watchdog

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def installed(tmp_path, *words):
    with pytest.raises(SystemExit) as ended:
        main(["install", "--folder", str(tmp_path), *words])
    assert ended.value.code == 0
    return tmp_path / "edge-agent.service"


@needs_systemd
def test_systemd_takes_the_unit_and_calls_it_safe(tmp_path):
    path = installed(tmp_path, "--", "--source", "dir:/srv/photos of today", "--fps", "5")
    verified = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True)
    complaints = [line for line in verified.stderr.splitlines() if "edge-agent.service" in line]
    assert not complaints
    rated = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=25", "--no-pager", str(path)],
        capture_output=True,
        text=True,
    )
    assert rated.returncode == 0, rated.stdout[-300:]


def test_arguments_arrive_as_they_were_given(tmp_path):
    (tmp_path / "a").mkdir()
    words = ("--devices", "--read", str(tmp_path / "a"), "--", "--source", "dir:/a b/100%$x")
    text = installed(tmp_path, *words).read_text()
    assert 'run --source "dir:/a b/100%%$$x"' in re.search(r"ExecStart=(.*)", text)[1]
    assert "PrivateDevices=no" in text
    assert f"BindReadOnlyPaths={tmp_path}/a" in text
    with pytest.raises(InstallError, match="line break"):
        unit_text(InstallOptions(("--source", "a\nExecStartPre=evil")), ["edge-agent"])


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (("--folder", "/proc/nowhere"), 1, "Run it as root"),
        (("--read", "/nowhere"), 1, "found no /nowhere"),
        (("--memory-mb", "1"), 1, "--memory-mb"),
        (("--", "--state", "/elsewhere"), 1, "Leave --state out"),
        (("--", "--sorce", "dir:/srv"), 2, "unrecognized arguments: --sorce"),
    ],
)
def test_a_unit_that_could_not_run_is_not_written(tmp_path, capsys, words, status, told):
    with pytest.raises(SystemExit) as ended:
        main(["install", "--folder", str(tmp_path), *words])
    assert ended.value.code == status
    assert told in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_without_systemd_that_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr("edge_runtime.install.SYSTEMD", tmp_path / "missing")
    with pytest.raises(InstallError, match="Wanted systemd"):
        install(InstallOptions(()))


def test_what_the_unit_would_hide_is_shown_to_it():
    python, venv = Path("/home/pi/.pyenv/3.11"), Path("/home/pi/agent")
    inside = (venv, venv / "lib", python, Path("/usr"), Path("/opt/agent"))
    assert hidden_places(inside) == (python, venv)


def test_the_watchdog_says_three_times_in_a_period_that_the_loop_goes_on(tmp_path):
    now = [0.0]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.setblocking(False)
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "3000000"}
        watchdog = Watchdog(environment, clock=lambda: now[0])
        watchdog.ready()
        for now[0] in (0.0, 0.5, 1.0, 1.2, 2.1):
            watchdog.alive()
        said = []
        while True:
            try:
                said.append(systemd.recv(100))
            except BlockingIOError:
                break
    assert said == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1", b"WATCHDOG=1"]
    Watchdog({}).alive()
    Watchdog({"NOTIFY_SOCKET": str(tmp_path / "gone")}).ready()


def test_an_agent_tells_systemd_when_it_is_up_and_when_it_ends(tmp_path, broker):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(30)
        code = "from edge_runtime.cli import main; main()"
        command = [
            sys.executable,
            "-c",
            code,
            "run",
            "--broker",
            broker,
            "--device",
            "notify1",
            "--state",
            str(tmp_path / "s"),
        ]
        environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "30000000"}
        environment["PYTHONPATH"] = str(Path(__file__).parent.parent.parent)
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        try:
            assert systemd.recv(100) == b"READY=1"
            assert systemd.recv(100) == b"WATCHDOG=1"
        finally:
            process.terminate()
        assert systemd.recv(100) == b"STOPPING=1"
        assert process.wait(20) == 0
