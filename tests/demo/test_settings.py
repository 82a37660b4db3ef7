"""What the demo tells the coordinator about its run arrives there as it was meant."""

import pytest
from tinylora_coordinator.folder import changed, parse_changes

from tinylora.demo.settings import demo_settings, settings_options


@pytest.mark.parametrize("depth", [2, 3])
def test_the_coordinator_reads_the_settings_that_the_demo_meant(depth):
    settings = demo_settings(4, depth, seed=3, router_sync="both")
    options = settings_options(settings)
    assert options[::2] == ["--set"] * (len(options) // 2)
    assert changed(parse_changes(options[1::2])) == settings
