"""Two bundles of random adapters, for pages that begin with one: `python -m tests.docs.small_bundle`."""

from pathlib import Path

from tests.bundle.test_derive_merge import a_run
from tinylora.base_model import load_base
from tinylora.bundle import write_bundle
from tinylora.demo.experiment import BASE_DIR


def main() -> None:
    """Write bundle.safetensors, of four leaves, and other.safetensors, of two."""
    base = load_base(BASE_DIR)
    write_bundle(a_run(base, "first", ("00", "01", "10", "11")), Path("bundle.safetensors"))
    write_bundle(a_run(base, "another", ("0", "1")), Path("other.safetensors"))


if __name__ == "__main__":
    main()
