"""The dashboard: a run as people see it, from its events and from what its workers report.

What is said, and by whom
    documents   what the API says, field by field; the page's types are generated from it
    source      what the API asks of whoever knows the run
    services    all that the app asks, as ports

The app
    app         the routes
    addresses   every address with its method, for the front door
    checks      who may ask what; `access` and `run_access` tell who it is
    answers, failures, file_answer, shell   how it answers, refuses, and what goes around every answer
    snapshots, stream                       the state once for all readers, and its changes
    pages, lite, metrics                    the built page, the plain one, and numbers for Prometheus
    openapi     the command that writes the API's description

What knows a run
    views       the projection; `fold`, `records`, `shown` and their neighbours are its parts, `follower` feeds it
    lookup, press, log_watch, admin         the way of a text, bundles, and the operator's desk
    recording, replay, showing              a run written down, and played again
    opening     all of it put together for a run that is served

Nothing here decides anything of a run, and nothing here is loaded by the rounds.
"""
