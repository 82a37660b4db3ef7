"""One file that a run can go on from elsewhere: an ordinary tar, in which each byte is accounted for.

    manifest.json         first: of which run and how long a log, and every file behind it with size and hash
    run.toml, base.json … what `init` wrote
    keys/                 all of them: who has the file is the run
    operator.sqlite       copied before the ledger, see docs/decisions/0023-backup.md
    ledger.sqlite         as it was at one moment; its chain was walked over
    blobs/                those that this ledger needs
    bundles/*.json        what is known of bundles; the bundles themselves on demand

Flower's state is not in it: a worker that the link does not know joins anew by its key. Nor are `views.sqlite`,
snapshots and bodies on their way in, which are made again.

`contents` names and documents · `tarball` the format, read strictly · `databases` copying and checking · `taking` ·
`restoring` · `note` what a restored folder knows of where it came from.
"""
