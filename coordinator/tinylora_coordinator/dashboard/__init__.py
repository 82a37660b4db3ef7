"""The dashboard: a run as people see it, from its events and from what its workers report.

documents  what the API says, field by field; the page's types are generated from it
source     what the API asks of whoever knows the run
app        the routes

Nothing here decides anything of a run, and nothing here is loaded by the rounds.
"""
