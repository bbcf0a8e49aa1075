"""Take a picture of a run of flows/preemption_drill.py in Prefect's UI: timeline, logs of the task, run summary.

Run it: `python docs/images/take.py http://127.0.0.1:4200 newest docs/images/run.png`, where a flow run id may stand for
`newest`. It needs playwright and pillow (`pip install playwright pillow`) and a Chromium at /usr/bin/chromium.
"""

from __future__ import annotations

import argparse
import io
import json
import urllib.request
from typing import Any

from PIL import Image
from playwright.sync_api import Page, sync_playwright

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SIDEBAR = 256
SCALE = 1.25
WIDTH = 960  # of the pages without the sidebar; times SCALE, of the picture. Any wider, a side panel takes a third
MARGIN = 12
COLORS = 96


def ask(ui: str, what: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The first objects of a kind (`flow_runs`, `task_runs`, `artifacts`) that pass a filter, by Prefect's API."""
    request = urllib.request.Request(
        f"{ui}/api/{what}/filter", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        found = json.load(answer)
    if not found:
        raise SystemExit(f"no {what} at {ui} for {body}")
    return list(found)


def shot(page: Page, url: str, height: int, text: str) -> Image.Image:
    """The page without the sidebar, scrolled until the first `text` on it is in the middle of it."""
    page.set_viewport_size({"width": SIDEBAR + WIDTH, "height": height})
    page.goto(url)
    page.get_by_text(text).first.wait_for()
    page.wait_for_timeout(3000)  # the timeline moves into place
    page.get_by_text(text).first.evaluate("element => element.scrollIntoView({block: 'center'})")
    page.wait_for_timeout(1000)
    image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    return image.crop((round(SIDEBAR * SCALE), 0, image.width, image.height))


def main() -> None:
    """Save the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ui", help="address of Prefect's UI, such as http://127.0.0.1:4200")
    parser.add_argument("flow_run", help="id of the flow run, or newest: the last completed one")
    parser.add_argument("output", help="where to write the picture (PNG)")
    given = parser.parse_args()
    ui = given.ui.rstrip("/")

    run = given.flow_run
    if run == "newest":
        done = {"flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}, "sort": "START_TIME_DESC", "limit": 1}
        run = ask(ui, "flow_runs", done)[0]["id"]
    of_run = {"flow_runs": {"id": {"any_": [run]}}}
    task = max(ask(ui, "task_runs", of_run), key=lambda one: int(one["run_count"]))  # the one with the losses
    summary = next(
        one for one in ask(ui, "artifacts", of_run) if one["type"] == "markdown" and one["task_run_id"] == task["id"]
    )

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(device_scale_factor=SCALE)
        parts = [
            shot(page, f"{ui}/runs/flow-run/{run}", 700, "Completed"),
            shot(page, f"{ui}/runs/task-run/{task['id']}", 480, "attempt 1 PREEMPTED"),
            shot(page, f"{ui}/artifacts/artifact/{summary['id']}", 1100, "SUCCEEDED after"),
        ]
        browser.close()
    parts[0] = parts[0].crop((0, 0, parts[0].width, round(500 * SCALE)))  # header and timeline
    picture = Image.new("RGB", (parts[0].width, sum(part.height + MARGIN for part in parts) - MARGIN), "white")
    top = 0
    for part in parts:
        picture.paste(part, (0, top))
        top += part.height + MARGIN
    picture.quantize(COLORS, dither=Image.Dither.NONE).save(given.output, optimize=True)


if __name__ == "__main__":
    main()
