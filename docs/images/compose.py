"""Make the README's picture from the screenshots that tests/e2e/test_ui.py leaves.

Run it: `PREFECT_TPU_SCREENSHOTS=DIR python -m pytest tests/e2e/test_ui.py`, then `python docs/images/compose.py DIR
docs/images/run.png`. Pillow comes with matplotlib.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

LEFT, RIGHT = 256, 1010  # without the sidebars
PARTS = (("flow-run", 0, 500), ("task-run", 560, 960), ("summary", 0, 870))
MARGIN = 12
COLORS = 96


def main() -> None:
    """Save the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("screenshots", type=Path, help="folder of the screenshots")
    parser.add_argument("output", help="where to write the picture (PNG)")
    given = parser.parse_args()
    parts = [
        Image.open(given.screenshots / f"{name}.png").convert("RGB").crop((LEFT, top, RIGHT, bottom))
        for name, top, bottom in PARTS
    ]
    picture = Image.new("RGB", (RIGHT - LEFT, sum(part.height + MARGIN for part in parts) - MARGIN), "white")
    top = 0
    for part in parts:
        picture.paste(part, (0, top))
        top += part.height + MARGIN
    picture.quantize(COLORS, dither=Image.Dither.NONE).save(given.output, optimize=True)


if __name__ == "__main__":
    main()
