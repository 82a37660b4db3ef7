"""`python -m tests.fuzz.bundle --runs N`: bundles changed at random, guided by what the reader's code does with them.

Needs atheris (`pip install tinylora[fuzz]`). An input that gets anything but a `BundleError` out of the reader ends the
run; it is kept in the folder of --out, beside `rules.json`: how many inputs each rule refused, and how many were read.
"""

import argparse
import importlib
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

atheris: Any = importlib.import_module("atheris")  # not everybody who looks at the types has it
with atheris.instrument_imports(include=["tinylora.bundle", "tinylora.tensors", "tinylora.tree"]):
    import tinylora.bundle
    import tinylora.tensors
    import tinylora.tree  # noqa: F401  (imported to be instrumented)

from tests.fuzz.mutations import MAX_BYTES, mutated
from tests.fuzz.target import seeds, try_file

TELL_EVERY = 10_000
EACH = 16
"""Of so many inputs, one is tried in every way; a sound one is written again."""


def main() -> None:
    """Fuzz; ends by itself after so many inputs, with exit code 0 if nothing was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.bundle", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--runs", type=int, default=100_000, help="inputs; default %(default)s")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "tinylora-fuzz")
    options = parser.parse_args()
    corpus = options.out / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for name, data in seeds().items():
        (corpus / name).write_bytes(data)
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        watch = Watch(Path(folder) / "bundle.safetensors", options.out, options.runs)
        words = [
            sys.argv[0], f"-runs={options.runs}", f"-seed={options.seed}", f"-max_len={MAX_BYTES}", "-timeout=20",
            "-rss_limit_mb=3000", f"-artifact_prefix={options.out}/crash-", "-print_final_stats=1", str(corpus),
        ]  # fmt: skip
        atheris.Setup(words, watch.take, custom_mutator=mutate)
        atheris.Fuzz()


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """One input from another."""
    return mutated(data, random.Random(seed), lambda raw, _: atheris.Mutate(raw, len(raw) + 64))[:max_size]


class Watch:
    """Tries one input after the other, and keeps count.

    Args:
        file: To write each input to.
        out: Folder for the numbers, and for one input of each rule.
        n_runs: Inputs in all.
    """

    def __init__(self, file: Path, out: Path, n_runs: int) -> None:
        self.file, self.out, self.n_runs = file, out, n_runs
        self.rules: Counter[str] = Counter()
        self.n = 0
        self.begun = time.monotonic()
        self.slowest_s = 0.0
        (out / "rules").mkdir(exist_ok=True)

    def take(self, data: bytes) -> None:
        """Try one input; whatever is raised is a finding."""
        begun = time.process_time()
        self.file.write_bytes(data)
        rule = try_file(self.file, is_thorough=self.n % EACH == 0)
        self.slowest_s = max(self.slowest_s, time.process_time() - begun)
        if rule not in self.rules:
            (self.out / "rules" / rule).write_bytes(data)
        self.rules[rule] += 1
        self.n += 1
        if self.n % TELL_EVERY == 0 or self.n >= self.n_runs:
            self._tell()

    def _tell(self) -> None:
        told = {
            "inputs": self.n,
            "seconds": round(time.monotonic() - self.begun, 1),
            "slowest_s": round(self.slowest_s, 4),
            "rules": dict(self.rules.most_common()),
        }
        (self.out / "rules.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
