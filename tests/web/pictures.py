"""The README's pictures of the dashboard, from the recorded run that comes with TinyLoRA: `make pictures`.

It is also `python -m tests.web.pictures`.
"""

from pathlib import Path

from playwright.sync_api import sync_playwright

from tests.web.chromium import QUIET, find
from tests.web.looking import goto
from tests.web.serving import replaying

PLACE = Path(__file__).parents[2] / "docs" / "pictures"
MOMENT = "325s"
"""Of the run: after a worker was lost and came back, and before it is all over."""


def main() -> None:
    """Entry point."""
    PLACE.mkdir(exist_ok=True)
    with replaying("--example", "--at", MOMENT) as shown, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find(), args=list(QUIET))
        for theme in ("light", "dark"):
            page = browser.new_page(
                viewport={"width": 1440, "height": 900},
                color_scheme="dark" if theme == "dark" else "light",
                reduced_motion="reduce",
            )
            goto(page, f"{shown.url}/?node=000")
            page.wait_for_timeout(3000)  # the charts, and the first of what is refreshed
            file = PLACE / f"dashboard-{theme}.png"
            page.screenshot(path=file, full_page=True)
            print(f"{file}: {file.stat().st_size / 1e3:.0f} kB")
            page.close()
        browser.close()


if __name__ == "__main__":
    main()
