"""The rules of a run, free of transport.

`events` what can happen · `state` what is remembered of it, `campaign` the fold of events, `removal` how a worker is
taken out again, `snapshot` the state as text · `decisions`, `assignment`, `topology`, `routers`, `acceptance`,
`probing`, `standing`, `routing_share`, `deadlines`, `growing`, `units`, `retention` what to do next, pure · `ports`
what the loop needs of the world, `ledger_memory` a ledger for simulations · `loop` drives it all, through `record`,
`intake`, `making`, `leasing` and `orders` · `summary` what a report says of it. The same loop runs under the
coordinator (Flower, a durable ledger, a real clock) and under the simulator.
"""
