"""The pages of docs/reference that are made from the code: `python -m tests.docs.reference` writes them anew.

markdown        words and tables, as a code host and the site both show them
source          what stands in the sources: codes, variables, constants, found in their syntax
commands        the three programs, from their typer applications
configuration   run.toml, limits.toml, quality.toml, variables of the environment
metrics         what /metrics exposes
codes           exit codes, checks, refusals, reasons, rules: each with its cause and its cure
documents       fields of what travels, from their pydantic models
surface         what `import tinylora` has
pages           all of these by file name

Nothing in them hangs on the terminal, the home folder, the platform or the time.
"""
