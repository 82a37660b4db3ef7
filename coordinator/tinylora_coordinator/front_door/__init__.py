"""The public front door: the one listener that strangers reach, and all they can do to it.

limits       every cap and deadline
guard        which request may pass, by its head alone
node_auth    whose fleet request it is, by its head alone
sockets      how many connections, in which phase, and which of them took too long
protocol     uvicorn's HTTP protocol, telling the phases
bodies       taken whole: large ones in a file, and few at once through memory
streams      answers that last, and how many of them
tries        how often one address may guess
crowd        how many requests one address has under way
proxy_line   what a proxy says before the first byte of TLS
app          all of that in order, before Flower's fleet, our routes and the dashboard
pages        health, the CA, the status
bundle_page  the published bundle, in ranges
serving      listeners, TLS, threads
"""

from tinylora_coordinator.front_door.app import Dashboard, FrontDoor
from tinylora_coordinator.front_door.limits import Limits
from tinylora_coordinator.front_door.node_auth import NodeAuth
from tinylora_coordinator.front_door.pages import public_pages
from tinylora_coordinator.front_door.serving import Served, serve_internal, serve_public, server_tls
from tinylora_coordinator.listening import listen
from tinylora_coordinator.sites import own_hosts

__all__ = [
    "Dashboard",
    "FrontDoor",
    "Limits",
    "NodeAuth",
    "Served",
    "listen",
    "own_hosts",
    "public_pages",
    "serve_internal",
    "serve_public",
    "server_tls",
]
