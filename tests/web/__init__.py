"""The dashboard in a real browser, against real processes on loopback: `make web-test`."""
