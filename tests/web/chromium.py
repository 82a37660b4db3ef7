"""Where the browser is; as a program, makes sure that there is one.

    python -m tests.web.chromium

Playwright's own browsers are built for few systems and come from one place; the system's Chromium is what people have.
"""

import os
import shutil
import subprocess
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--js-flags=--expose-gc")  # fmt: skip
"""It talks to nobody but the page, and can be told to collect garbage."""


def find() -> str:
    """The browser's program; `CHROMIUM` names another one. Empty where there is none."""
    return os.environ.get("CHROMIUM", "") or next((found for name in NAMES if (found := shutil.which(name))), "")


def main() -> int:
    """Entry point."""
    if not find() and shutil.which("apt-get") and os.geteuid() == 0:
        print("Installing Debian's Chromium", file=sys.stderr)
        subprocess.run(["apt-get", "update", "-qq"], check=False)
        subprocess.run(["apt-get", "install", "-y", "-qq", "chromium"], check=False, stdout=subprocess.DEVNULL)
    if not find():
        print(
            f"error: no Chromium: expected one of {', '.join(NAMES)} on PATH; install it (Debian: apt install "
            "chromium), or say CHROMIUM=/path/to/it",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
