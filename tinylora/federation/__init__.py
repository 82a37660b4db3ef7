"""The rules of a run, free of transport: events, the campaign they fold to, pure decisions, and the loop that drives them.

`events` what can happen · `campaign` the state, a fold of events · `assignment`, `topology`, `acceptance`, `deadlines` pure
decisions · `ports` what the loop needs of the world · `ledger_memory`, `ledger_sqlite` two ledgers behind one contract ·
`loop` drives it all. The same loop runs under the coordinator (Flower, SQLite, real clock) and under the simulator.
"""
