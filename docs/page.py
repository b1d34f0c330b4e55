"""Write the screenshots of the audit's page, docs/images/page-*.png, from records that are made up here.

python docs/page.py [FOLDER]   # needs Chromium in PATH, and Pillow; the page and its PDF go to the folder

The records: 100 training steps, 4 environments, several turns, lags of 0 to 3; the engine logs before temperature 0.8.
"""

import io
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from reweigh import report
from reweigh.audit import audit
from reweigh.doctor import doctor
from reweigh.records import RecordWriter, RunInfo

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from browser import Browser  # noqa: E402 - the driver that the tests use

IMAGES = ROOT / "docs" / "images"
TALLEST = 1500  # pixels of a picture of a section
VOCABULARY, TEMPERATURE = 50, 0.8


def records(path: Path) -> None:
    """Responses of a made-up model whose engine logs before temperature, and samples with old weights."""
    g = np.random.default_rng(3)
    rows: list[dict[str, object]] = []
    for i in range(1200):
        step, lag, env = i // 12, int(g.choice(4, p=[0.4, 0.3, 0.2, 0.1])), i % 4
        length = int(np.clip(g.lognormal(5.0, 0.8), 5, 1500))
        logits = 2.2 * g.standard_normal((length, VOCABULARY))
        sampler = logits + 0.01 * (1 + 2 * lag) * (2 if env == 2 else 1) * g.standard_normal(logits.shape)
        token = (sampler / TEMPERATURE + g.gumbel(size=logits.shape)).argmax(1)
        at = (np.arange(length), token)
        mu, pi = sampler, logits / TEMPERATURE  # raw on one side, as it was sampled on the other
        rows.append(
            {
                "sequence_id": f"step-{step:03d}/prompt-{i // 4}/{env}",
                "prompt_id": f"prompt-{i // 4}",
                "step": step,
                "env": ("math", "code", "search", "chat")[env],
                "log_mu": (mu - np.logaddexp.reduce(mu, 1, keepdims=True))[at],
                "log_pi": (pi - np.logaddexp.reduce(pi, 1, keepdims=True))[at],
                "mask": (g.random(length) < 0.95) | (np.arange(length) == 0),
                "advantage": float(g.normal()),
                "versions": np.full(length, 100 + step - lag),
                "trainer_version": 100 + step,
                "turns": np.arange(length) // 90,
                "token_ids": token,
            }
        )
    with RecordWriter(path, RunInfo(engine="vllm", trainer="fsdp", temperature=TEMPERATURE)) as writer:
        for first in range(0, len(rows), 100):
            writer.write(rows[first : first + 100])


def save(name: str, png: bytes) -> None:
    """With 256 colours, which is enough for a page like this."""
    image = Image.open(io.BytesIO(png)).convert("RGB").quantize(256)
    image.save(IMAGES / f"page-{name}.png", optimize=True)
    print(f"page-{name}.png: {(IMAGES / f'page-{name}.png').stat().st_size / 1000:.0f} kB")


def section(browser: Browser, selector: str) -> bytes:
    """A picture of one part of the page."""
    box = f"document.querySelector('{selector}').getBoundingClientRect()"
    x, y, width, height = browser.js(
        f"(() => {{ const b = {box}; return [b.left, b.top + scrollY, b.width, b.height] }})()"
    )
    return browser.picture({"x": x, "y": y, "width": width, "height": min(height, TALLEST)})


def main() -> None:
    """Make the records, audit them, and look at the page."""
    browser = Browser()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # the page names the file as it was given
        path, page = Path("records.parquet"), Path("page.html")
        records(path)
        found = replace(audit(path), diagnosis=doctor(path))
        page.write_text(report.page(found, "reweigh audit records.parquet --html page.html"), encoding="utf-8")
        browser.open(page)
        save("top", browser.picture())
        browser.js("document.getElementById('filters').style.position = 'static'")
        for name in ("causes", "gap", "where", "estimators", "worst"):
            save(name, section(browser, f"#{name}"))
        browser.open(page, dark=True)
        save("dark", section(browser, "#gap .figures"))
        browser.open(page, width=400, height=860)
        save("narrow", browser.picture())
        browser.open(page, width=720, height=1000)
        browser.js("dispatchEvent(new Event('beforeprint'))")
        browser.call("Emulation.setEmulatedMedia", media="print")
        save("print", section(browser, "body"))
        browser.call("Emulation.setEmulatedMedia", media="")
        browser.open(page)
        if len(sys.argv) > 1:
            Path(sys.argv[1], "page.pdf").write_bytes(browser.pdf())
            Path(sys.argv[1], "page.html").write_bytes(page.read_bytes())
    browser.close()
    assert not browser.errors, browser.errors


if __name__ == "__main__":
    main()
