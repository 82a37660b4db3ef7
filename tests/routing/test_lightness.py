import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["", ".statistics", ".gates", ".halves", ".decision", ".ways"])
def test_the_coordinators_part_loads_no_torch(module):
    probe = f"import sys, tinylora.routing{module}; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "False"
