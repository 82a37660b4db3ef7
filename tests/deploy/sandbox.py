"""Runs the command of a systemd unit under that unit's sandbox, where no systemd is at work.

    python -m tests.deploy.sandbox UNIT INSTANCE BINDS [COMMAND ...]

BINDS is JSON: where in the unit's world -> folder of this machine. Without a COMMAND the unit's own is run. By root.

Read from the unit and applied as systemd.exec(5) says: ProtectSystem=strict with its state folders, ProtectHome,
PrivateTmp, PrivateDevices, PrivateIPC, PrivateNetwork, ProtectProc, ProcSubset, CapabilityBoundingSet (to nothing),
NoNewPrivileges, User (as a bare number), SystemCallFilter, RestrictAddressFamilies, RestrictNamespaces,
MemoryDenyWriteExecute, UMask, Environment. Not applied: PrivateUsers, DeviceAllow, and what only takes away rights
that a process without capabilities does not have.
"""

import ctypes
import ctypes.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

UID = 10990
NEW_NS, NEW_IPC, NEW_NET, NEW_UTS = 0x20000, 0x08000000, 0x40000000, 0x04000000
NAMESPACES = 0x02000000 | NEW_UTS | NEW_IPC | 0x10000000 | 0x20000000 | NEW_NET | NEW_NS
ALLOW, EPERM = 0x7FFF0000, 0x00050000 | 1
ENOSYS = 0x00050000 | 38
MASKED_EQ, EQ = 7, 4
FAMILIES = {"AF_UNIX": 1, "AF_INET": 2, "AF_INET6": 10, "AF_NETLINK": 16}
Unit = Mapping[str, list[str]]


def read_unit(text: str) -> dict[str, list[str]]:
    """Settings of a unit, each with all its values; an empty one forgets those before it, as systemd has it."""
    found: dict[str, list[str]] = {}
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        key, equals, value = line.partition("=")
        if not equals or line.startswith(("#", ";")):
            continue
        found[key] = [*found.get(key, []), value] if value else []
    return found


def words_of(unit: Unit, environment: Mapping[str, str], instance: str) -> list[str]:
    """The command of ExecStart: an unbraced variable may be several words, `$$` and `%%` stand for themselves."""
    import shlex

    words: list[str] = []
    for word in shlex.split(unit["ExecStart"][0]):
        word = re.sub(r"%([i%])", lambda found: instance if found[1] == "i" else "%", word)
        if re.fullmatch(r"\$[A-Z_]+", word):
            words += environment.get(word[1:], "").split()
            continue
        word = re.sub(r"\$\{([A-Z_]+)\}", lambda found: environment.get(found[1], ""), word)
        words.append(word.replace("$$", "$"))
    return words


# --- files ----------------------------------------------------------------------------------------------------------


def mount(*words: object) -> None:
    subprocess.run(["mount", *map(str, words)], check=True)


def make_world(unit: Unit, binds: Mapping[str, str], instance: str) -> None:
    """Mounts: everything read-only but what the unit may write to."""
    mount("--make-rprivate", "/")
    held = {target: f"/mnt/{number}" for number, target in enumerate(binds)}
    mount("-t", "tmpfs", "tmpfs", "/mnt")
    for target, source in binds.items():
        os.mkdir(held[target])
        mount("--rbind", source, held[target])
    for number, parent in enumerate(sorted({str(Path(target).parent) for target in binds})):
        _make_room(parent, Path(f"/mnt/room-{number}"))
    for target in binds:
        os.makedirs(target, exist_ok=True)
        mount("--rbind", held[target], target)
    _hide(unit)
    writable = [*_state(unit), *(part.replace("%i", instance) for part in _split(unit, "ReadWritePaths"))]
    for path in writable:
        mount("--bind", path, path)
    _freeze(writable)


def _make_room(parent: str, aside: Path) -> None:
    """A folder in which names can be made that this machine does not have; what was there is there still."""
    aside.mkdir()
    mount("--rbind", parent, aside)
    mount("-t", "tmpfs", "-o", "mode=0755", "tmpfs", parent)
    for child in aside.iterdir():
        place = Path(parent, child.name)
        if child.is_symlink():
            place.symlink_to(child.readlink())
            continue
        place.mkdir() if child.is_dir() else place.touch()
        mount("--rbind", child, place)


def _state(unit: Unit) -> list[str]:
    kinds = {"StateDirectory": "/var/lib", "CacheDirectory": "/var/cache"}
    return [f"{root}/{_split(unit, kind)[0]}" for kind, root in kinds.items() if _split(unit, kind)]


def _split(unit: Unit, key: str) -> list[str]:
    return " ".join(unit.get(key, [])).split()


def _is_on(unit: Unit, key: str) -> bool:
    return unit.get(key, ["no"])[-1] in ("yes", "true", "strict", "invisible", "pid")


def _hide(unit: Unit) -> None:
    if _is_on(unit, "ProtectHome"):
        for home in ("/home", "/root", "/run/user"):
            if Path(home).is_dir():
                _hide_home(home)
    if _is_on(unit, "PrivateTmp"):
        for folder in ("/tmp", "/var/tmp"):
            mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", folder)
    if _is_on(unit, "PrivateDevices"):
        _make_devices()
    options = [
        name for key, name in (("ProcSubset", "subset=pid"), ("ProtectProc", "hidepid=invisible")) if _is_on(unit, key)
    ]
    if options:
        mount("-t", "proc", "-o", ",".join(options), "proc", "/proc")


def _hide_home(home: str) -> None:
    """An empty one; but for the Python that runs all this, which in /opt would stand elsewhere."""
    ours = {path for path in (sys.prefix, sys.base_prefix) if Path(path).is_relative_to(home)}
    aside = Path("/mnt", f"home-{Path(home).name}")
    aside.mkdir()
    mount("--rbind", home, aside)
    mount("-t", "tmpfs", "-o", "mode=0755", "tmpfs", home)
    for path in ours:
        os.makedirs(path)
        mount("--rbind", aside / Path(path).relative_to(home), path)


def _make_devices() -> None:
    kept = ("null", "zero", "full", "random", "urandom", "tty")
    for name in kept:
        Path("/mnt", name).touch()
        mount("--bind", f"/dev/{name}", f"/mnt/{name}")
    mount("-t", "tmpfs", "-o", "mode=0755", "tmpfs", "/dev")
    for name in kept:
        Path("/dev", name).touch()
        mount("--bind", f"/mnt/{name}", f"/dev/{name}")
    os.mkdir("/dev/shm")
    mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", "/dev/shm")


def _freeze(writable: Iterable[str]) -> None:
    """ProtectSystem=strict: whatever is mounted is read-only, but /dev, /proc, /sys and what is writable."""
    kept = ("/dev", "/proc", "/sys", "/tmp", "/var/tmp", *writable)
    points = [
        line.split()[4].encode().decode("unicode_escape")
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
    ]
    for point in sorted(set(points), reverse=True):
        if not any(point == path or point.startswith(f"{path}/") for path in kept):
            subprocess.run(["mount", "-o", "remount,bind,ro", point], stderr=subprocess.DEVNULL, check=False)


# --- system calls ---------------------------------------------------------------------------------------------------


class _Argument(ctypes.Structure):
    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


def calls_of(group: str) -> set[str]:
    """All system calls of a group, those of the groups in it too, as the installed systemd has them."""
    if not group.startswith("@"):
        return {group}
    listed = subprocess.run(["systemd-analyze", "syscall-filter", group], capture_output=True, text=True, check=True)
    names = [
        line.split()[0] for line in listed.stdout.splitlines()[1:] if line.strip() and not line.strip().startswith("#")
    ]
    return set().union(*(calls_of(name) for name in names))


def allowed_calls(unit: Unit) -> set[str]:
    """What SystemCallFilter leaves."""
    allowed: set[str] = set()
    for line in unit["SystemCallFilter"]:
        named = set().union(*(calls_of(group) for group in line.removeprefix("~").split()))
        allowed = allowed - named if line.startswith("~") else allowed | named
    return allowed


def load_filter(calls: set[str], families: Iterable[str], *, is_writing_code_denied: bool) -> None:
    """Everything else is refused with EPERM, as the units say."""
    library = ctypes.CDLL(ctypes.util.find_library("seccomp") or "libseccomp.so.2", use_errno=True)
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(EPERM)))

    def rule(action: int, name: str, *arguments: _Argument) -> None:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number >= 0:
            array = (_Argument * len(arguments))(*arguments)
            code = library.seccomp_rule_add_array(context, ctypes.c_uint32(action), number, len(arguments), array)
            assert code == 0, (name, code)

    special = {
        "socket",
        "clone",
        "clone3",
        "unshare",
        "setns",
        *(("mmap", "mprotect") if is_writing_code_denied else ()),
    }
    for name in sorted(calls - special):
        rule(ALLOW, name)
    for family in families:
        rule(ALLOW, "socket", _Argument(0, EQ, FAMILIES[family], 0))
    rule(ALLOW, "clone", _Argument(0, MASKED_EQ, NAMESPACES, 0))
    rule(ENOSYS, "clone3")
    if is_writing_code_denied:
        rule(ALLOW, "mprotect", _Argument(2, MASKED_EQ, 4, 0))
        rule(ALLOW, "mmap", _Argument(2, MASKED_EQ, 4, 0))
        rule(ALLOW, "mmap", _Argument(2, MASKED_EQ, 6, 4))
    assert library.seccomp_load(context) == 0


# --- one process ----------------------------------------------------------------------------------------------------


def main() -> None:
    """Entry point; ends as the unit's command."""
    file, instance, binds, *command = sys.argv[1:]
    unit = read_unit(Path(file).read_text())
    environment = _environment(unit)
    words = command or words_of(unit, environment, instance)
    calls = allowed_calls(unit)
    libc = ctypes.CDLL(None, use_errno=True)
    kinds = NEW_NS | NEW_UTS | (NEW_IPC if _is_on(unit, "PrivateIPC") else 0)
    kinds |= NEW_NET if _is_on(unit, "PrivateNetwork") else 0
    assert libc.unshare(kinds) == 0, os.strerror(ctypes.get_errno())
    make_world(unit, json.loads(binds), instance)
    for capability in range(64):
        libc.prctl(24, capability, 0, 0, 0)
    os.setgroups([])
    os.setgid(UID)
    os.setuid(UID)
    os.umask(int(unit["UMask"][0], 8))
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    os.chdir(unit.get("WorkingDirectory", ["/"])[0].replace("%i", instance))
    load_filter(
        calls, _split(unit, "RestrictAddressFamilies"), is_writing_code_denied=_is_on(unit, "MemoryDenyWriteExecute")
    )
    os.execve(words[0], words, environment)


def _environment(unit: Unit) -> dict[str, str]:
    """What the unit sets, and of ours only where Python finds the packages, and what a test means for the unit."""
    kept = {
        name: os.environ[name]
        for name in ("PYTHONPATH", "OMP_NUM_THREADS", "CREDENTIALS_DIRECTORY")
        if name in os.environ
    }
    given = {name: value for name, value in os.environ.items() if name.startswith("TINYLORA_")}
    said = dict(part.split("=", 1) for part in _split(unit, "Environment"))
    return {"PATH": "/usr/bin:/bin", "HOME": "/", "LANG": "C.UTF-8", **kept, **given, **said}


if __name__ == "__main__":
    main()
