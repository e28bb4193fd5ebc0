"""The dashboard in a real Chromium, over a running fleet: `make test-browser`. HEADTAIL_SCREENSHOTS keeps pictures there."""

import os
import re
import shutil
import signal
import threading
from pathlib import Path

import pytest

from edge_runtime.messages import Birth, Ranked, Result, Slots, Topics, encode_control
from edge_runtime.mqtt import LinkBusyError, LinkOptions, MqttLink, Packet
from orchestrator.broker import BrokerOptions, free_port
from orchestrator.cli import run
from orchestrator.fleet.supervisor import Supervisor

pytestmark = pytest.mark.browser
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
BOOT = "0123456789abcdef"
MS = {"preprocess_ms": 1.0, "head_ms": 6.0, "uplink_ms": 3.0, "tail_ms": 4.0, "downlink_ms": 1.5, "total_ms": 15.5}
SCHEMES = ("light", "dark")
CUT = "[...document.querySelectorAll('section')].filter(s => s.scrollWidth > s.clientWidth).map(s => s.innerText.slice(0, 40))"
# the lowest contrast of a text with what is behind it, as WCAG 2 computes it
LEAST_CONTRAST = """() => {
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  let least = [99, ""];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode;
    if (!node.textContent.trim() || !node.parentElement.offsetParent) continue;
    let behind = node.parentElement, colour = [0, 0, 0, 0];
    while (behind && (colour.length === 4 && colour[3] === 0)) {
      colour = parse(getComputedStyle(behind).backgroundColor); behind = behind.parentElement;
    }
    const pair = [light(parse(getComputedStyle(node.parentElement).color)), light(colour)].sort((a, b) => b - a);
    const contrast = (pair[0] + 0.05) / (pair[1] + 0.05);
    if (contrast < least[0]) least = [contrast, node.textContent.trim().slice(0, 40)];
  }
  return least;
}"""


def expect(what):
    """Playwright's assertions, which wait; imported here because only `make test-browser` installs it."""
    from playwright.sync_api import expect as wait_for

    return wait_for(what)


@pytest.fixture(scope="module")
def browser():
    """One Chromium."""
    if CHROMIUM is None:
        pytest.fail("Wanted chromium, found none. `make test-browser` installs it.")
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield opened
        opened.close()


class Fleet:
    """A running fleet that something watches while the browser looks at it."""

    def __init__(self, folder):
        ports = {"files": free_port(), "dashboard": free_port()}
        self.folder = folder
        self.supervisor = Supervisor(folder, options=BrokerOptions(port=0), ports=ports, demo=50)
        self.url = f"http://127.0.0.1:{ports['dashboard']}"
        self._stop = threading.Event()
        self._watching = threading.Thread(target=self._watch, daemon=True)
        self._watching.start()

    def _watch(self):
        while not self._stop.wait(0.2):
            self.supervisor.watch()

    def close(self):
        self._stop.set()
        self._watching.join()
        self.supervisor.close()

    def headtail(self, *words):
        assert run(["fleet", *words, "--folder", str(self.folder)]) == 0


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    """Fifty simulated devices."""
    running = Fleet(tmp_path_factory.mktemp("fleet"))
    yield running
    running.close()


@pytest.fixture(params=SCHEMES)
def page(request, browser, fleet):
    """A page in one scheme of colours; nothing may go wrong in it."""
    context = browser.new_context(color_scheme=request.param, viewport={"width": 1280, "height": 900})
    opened, wrong = context.new_page(), []
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("console", lambda message: message.type == "error" and wrong.append(message.text))
    visit(opened, fleet.url)
    opened.scheme = request.param
    yield opened
    keep(opened, request.node.name)
    context.close()
    assert not [text for text in wrong if "ERR_" not in text], "the network may go, scripts may not fail"


def visit(page, url):
    """Go there; the dashboard may still be starting."""
    from playwright.sync_api import Error

    for _ in range(150):
        try:
            page.goto(url)
            break
        except Error:
            page.wait_for_timeout(200)
    expect(page.locator("#state")).to_have_text("live", timeout=10_000)


def send(link, packet):
    """Publish when there is room."""
    pause = threading.Event()
    while True:
        try:
            return link.publish(packet)
        except LinkBusyError:
            pause.wait(0.01)


def keep(page, name):
    folder = os.environ.get("HEADTAIL_SCREENSHOTS")
    if folder:
        page.screenshot(path=Path(folder) / f"{re.sub('[^a-z]+', '-', name)}.png", full_page=True)


def test_fifty_devices_are_there_and_every_text_can_be_read(page):
    expect(page.locator("#part-tiles b").first).to_have_text("50 / 50", timeout=30_000)
    expect(page.locator("#part-devices tbody tr")).to_have_count(50)
    contrast, text = page.evaluate(LEAST_CONTRAST)
    assert contrast >= 4.5, text
    keep(page, f"contrast-{page.scheme}")
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (
        "a telephone scrolls tables, not the page"
    )


def test_the_choice_of_light_or_dark_is_kept(page):
    def lightness():
        return page.evaluate("parseInt(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0])")

    before = lightness()
    assert (before > 127) == (page.scheme == "light")
    page.click("#theme")
    assert (lightness() > 127) != (before > 127)
    page.reload()
    assert (lightness() > 127) != (before > 127)


def test_search_and_links_lead_to_a_device(page):
    page.fill("input[type=search]", "sim-0007")
    page.press("input[type=search]", "Enter")
    expect(page.locator("#part-devices tbody tr")).to_have_count(1)
    page.click("#part-devices a")
    expect(page.locator("h2").first).to_contain_text("default/sim-0007")
    expect(page.locator("#part-device")).to_contain_text("online")


def test_a_rollout_moves_on_without_a_reload_while_the_broker_is_killed(page, fleet):
    version = {"light": "demo@1", "dark": "demo@2"}[page.scheme]
    fleet.headtail("rollout", version, "--to", "all", "--soak", "0.5", "--probation", "0.5", "--stages", "4%,100%")
    first = page.locator("#part-rollouts tbody tr").first
    expect(first).to_contain_text(version, timeout=10_000)
    os.kill(fleet.supervisor.broker_pid, signal.SIGKILL)
    expect(first).to_contain_text("done", timeout=120_000)
    expect(page.locator("#part-models")).to_contain_text(version)
    page.click("#part-rollouts a >> nth=0")
    expect(page.locator("#part-rollout tbody tr")).to_have_count(50)


def test_bytes_agreement_confidence_and_drift_of_a_model_are_seen(page, fleet):
    name, head = f"seen-{page.scheme}", {"light": "a", "dark": "b"}[page.scheme] * 64
    topics = Topics("default", name)
    born = Birth(
        boot=BOOT, boot_count=1, board="rpi-5", agent="1", engines=("onnxruntime",), max_block_bytes=65536,
        slots=Slots(head=head),
    )  # fmt: skip
    with MqttLink(fleet.supervisor.broker, LinkOptions(), lambda *_: None) as link:
        link.wait_connected(10)
        link.publish(Packet(topics.up("birth"), encode_control(born), 1, retain=True))
        expect(page.locator("#part-devices")).to_contain_text(name, timeout=20_000)
        for seq in range(900):  # sure at first, then in doubt
            top = (Ranked(index=1, score=0.95 if seq < 500 else 0.45),)
            answer = Result(
                boot=BOOT, seq=seq, frame="f", source="remote", ms=MS, sent=15_744, top=top, agrees=seq % 10 > 0
            )
            send(link, Packet(topics.up("result"), encode_control(answer), 1))
        row = page.locator("#part-models tr", has_text=head[:8])
        expect(row).to_contain_text("90.0 %", timeout=20_000)
        for text in ("15.4 KiB", "15.5 ms", "of 900", "alert"):
            expect(row).to_contain_text(text)
        assert row.locator("svg.histogram rect").count() == 20
        assert page.evaluate(CUT) == [], "at 1280 pixels no column is out of sight"
        expect(page.locator("#part-alerts")).to_contain_text("confidence has drifted")
        keep(page, f"model-{page.scheme}")
    page.goto(f"{fleet.url}/devices/default/{name}")
    expect(page.locator("svg.series circle").first).to_be_visible()
