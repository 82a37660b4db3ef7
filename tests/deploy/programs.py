"""Makes sure that the programs are there which `make deploy-test` tries the files of deploy/ with.

    python -m tests.deploy.programs

All are Debian's own; what pip can bring (hadolint, schemas) is among the development tools.
"""

import os
import shutil
import subprocess
import sys

PROGRAMS = {
    "buildah": "buildah",
    "caddy": "caddy",
    "curl": "curl",
    "ip": "iproute2",
    "iptables": "iptables",
    "mmdebstrap": "mmdebstrap",
    "nginx": "nginx",
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "shellcheck": "shellcheck",
    "systemd-analyze": "systemd",
    "yamllint": "yamllint",
}
"""Program to the package of Debian that has it."""
MODULES = {"/usr/lib/nginx/modules/ngx_stream_module.so": "libnginx-mod-stream"}
"""The same for what is no program."""


def missing() -> list[str]:
    """Packages of Debian that must be installed first."""
    programs = {package for program, package in PROGRAMS.items() if shutil.which(program) is None}
    return sorted(programs | {package for file, package in MODULES.items() if not os.path.exists(file)})


def main() -> int:
    """Entry point."""
    if missing() and shutil.which("apt-get") and os.geteuid() == 0:
        print(f"Installing {', '.join(missing())}", file=sys.stderr)
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "update", "-qq"], check=False)
        subprocess.run(
            ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing()],
            check=False,
            env=quiet,
            stdout=subprocess.DEVNULL,
        )
    if missing():
        print(
            f"error: not there: {', '.join(missing())}; on Debian: apt install {' '.join(missing())}", file=sys.stderr
        )
        return 1
    if os.geteuid() != 0:
        print("error: name spaces and images are made by root: say `sudo make deploy-test`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
