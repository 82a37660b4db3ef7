"""The demo: text from this machine, the small base and its recipe, processes, live view, and what came of it."""
