"""The rules of a run, free of transport.

`events` what can happen · `campaign` the state, a fold of events · `decisions`, `assignment`, `topology`, `routers`,
`acceptance`, `deadlines`, `units` what to do next, pure · `ports` what the loop needs of the world · `ledger_memory` a
ledger that lives as long as its process · `loop` drives it all · `summary` what a report says of it. The same loop runs
under the coordinator (Flower, the durable ledger, real clock) and under the simulator.
"""
