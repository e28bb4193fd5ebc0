import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from edge_runtime.cli import main
from edge_runtime.install import InstallError, InstallOptions, unit_text
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
    text = installed(tmp_path, "--devices", "--read", "/srv/a", "--", "--source", "dir:/a b/100%$x").read_text()
    assert 'run --source "dir:/a b/100%%$$x"' in re.search(r"ExecStart=(.*)", text)[1]
    assert "PrivateDevices=no" in text
    assert "BindReadOnlyPaths=/srv/a" in text
    with pytest.raises(InstallError, match="line break"):
        unit_text(InstallOptions(("--source", "a\nExecStartPre=evil")), ["edge-agent"])


def test_a_folder_that_cannot_be_written_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["install", "--folder", str(tmp_path / "missing")])
    assert ended.value.code == 1
    assert "InstallError" in capsys.readouterr().err


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
