"""Opens report pages in a headless Chromium and says what a reader would stumble over.

    python3 tools/report/check.py REPORT.html... [--out DIR] [--chromium PATH]

Each page is opened at desktop and at phone width, light and dark, and printed. It fails when the console has an error,
when the page asks anybody for anything, when it is wider than the screen, when a matrix's controls do nothing, or when a
section that is closed on the screen is missing on paper.
With --out it leaves screenshots to look at. Needs Debian's package `chromium` and nothing else: the browser is spoken
to over a pipe in its own protocol.
"""
import argparse
import base64
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

SIZES = {"desktop": (1280, 900, False), "phone": (390, 844, True)}
SCHEMES = ("light", "dark")

# What the controls of the first matrix do: by column, then as counts, then twice larger, then fitted again.
CONTROLS = """(() => {
  const matrix = document.querySelector('.matrix'), cell = matrix.querySelector('.cell.miss') || matrix.querySelector('.cell');
  const shade = () => getComputedStyle(cell).fillOpacity, width = () => matrix.querySelector('svg').getBoundingClientRect().width;
  const by = ['row', 'column', 'count'].map(value => { matrix.querySelector(`[value=${value}]`).click(); return shade(); });
  const wanted = ['--row', '--column', '--count'].map(name => cell.style.getPropertyValue(name));
  matrix.querySelector('[value=row]').click();
  const before = width();
  matrix.querySelector('[data-zoom=in]').click();
  const larger = width();
  matrix.querySelector('[data-zoom=fit]').click();
  const fitted = width(), pane = matrix.querySelector('.pane').clientWidth;
  cell.dispatchEvent(new PointerEvent('pointerover', {bubbles: true}));
  const told = matrix.querySelector('.readout').textContent === cell.querySelector('title').textContent;
  return {by: by.every((shade, index) => Math.abs(shade - wanted[index]) < 0.011), larger: larger > before * 1.3,
          fitted: fitted <= pane + 1, told};
})()"""


# The sections whose contents do not show.
CLOSED = """[...document.querySelectorAll('details')].filter(it => !it.lastElementChild.checkVisibility())
  .map(it => it.querySelector('summary').textContent)"""


class Browser:
    """A Chromium that is spoken to over a pipe: JSON messages, each ended by a zero byte."""

    def __init__(self, program):
        to_browser, self.write_end = os.pipe()
        self.read_end, from_browser = os.pipe()

        def at_3_and_4():
            # Whatever numbers the pipes have, the browser expects to read from 3 and to write to 4.
            os.dup2(os.dup(to_browser), 3 + 60)
            os.dup2(os.dup(from_browser), 4 + 60)
            os.dup2(63, 3)
            os.dup2(64, 4)

        self.profile = tempfile.TemporaryDirectory()
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-background-networking",
                 "--remote-debugging-pipe", "--no-first-run", f"--user-data-dir={self.profile.name}"]
        self.process = subprocess.Popen([program, *flags], preexec_fn=at_3_and_4, close_fds=False,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(to_browser)
        os.close(from_browser)
        self.buffer, self.number, self.events, self.session = b"", 0, [], None

    def receive(self):
        while b"\0" not in self.buffer:
            part = os.read(self.read_end, 1 << 16)
            if not part:
                sys.exit("error: the browser ended")
            self.buffer += part
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def call(self, method, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write_end, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive()
            if answer.get("id") == self.number:
                if "error" in answer:
                    sys.exit(f"error: {method}: {answer['error']['message']}")
                return answer["result"]
            self.events.append(answer)

    def wait_for(self, event):
        while not any(seen["method"] == event for seen in self.events):
            self.events.append(self.receive())

    def close(self):
        self.process.terminate()
        self.process.wait()


def value(browser, expression):
    return browser.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")


def complaints(events, url):
    found = []
    for event in events:
        method, params = event["method"], event.get("params", {})
        if method == "Network.requestWillBeSent" and params["request"]["url"] != url:
            found.append(f"asks for {params['request']['url'][:120]}")
        elif method == "Runtime.exceptionThrown":
            found.append(f"exception: {params['exceptionDetails']['text']}")
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            found.append(f"console: {params['args']}")
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            found.append(f"log: {params['entry']['text']}")
    return found


def look(browser, page, size, scheme, out):
    """Opens the page; returns what is wrong with it."""
    width, height, mobile = SIZES[size]
    url = page.resolve().as_uri()
    browser.events.clear()
    browser.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1 + mobile, mobile=mobile)
    browser.call("Emulation.setEmulatedMedia", media="", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.call("Page.navigate", url=url)
    browser.wait_for("Page.loadEventFired")
    value(browser, "document.querySelectorAll('details').forEach(it => it.open = true)")
    found = []
    wide = value(browser, "document.documentElement.scrollWidth")
    if wide > width:
        found.append(f"is {wide} pixels wide on a screen of {width}")
    done = value(browser, CONTROLS)
    found += [f"the matrix's controls: `{name}` does not hold" for name, holds in (done or {"run": False}).items() if not holds]
    if out:
        tall = value(browser, "document.documentElement.scrollHeight")
        clip = {"x": 0, "y": 0, "width": width, "height": min(tall, 16000 // (1 + mobile)), "scale": 1}
        picture = browser.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)["data"]
        (out / f"{page.stem}-{size}-{scheme}.png").write_bytes(base64.b64decode(picture))
    if size == "desktop" and scheme == "light":
        value(browser, "document.querySelectorAll('details').forEach(it => it.open = false)")
        browser.call("Emulation.setEmulatedMedia", media="print")
        found += [f"closed on paper: {name}" for name in value(browser, CLOSED)]
        printed = base64.b64decode(browser.call("Page.printToPDF", printBackground=True)["data"])
        if out:
            (out / f"{page.stem}.pdf").write_bytes(printed)
    return found + complaints(browser.events, url)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="+", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--chromium", default="chromium")
    args = parser.parse_args()
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
    browser, wrong = Browser(args.chromium), 0
    try:
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        browser.session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            browser.call(f"{domain}.enable")
        for page in args.pages:
            for size in SIZES:
                for scheme in SCHEMES:
                    found = look(browser, page, size, scheme, args.out)
                    wrong += len(found)
                    print(f"{page.name} {size} {scheme}: {'; '.join(found) or 'good'}")
    finally:
        browser.close()
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
