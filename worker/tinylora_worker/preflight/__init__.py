"""Before a worker joins: is this machine fit, is the coordinator the right one, what will it cost, is it wanted?

codes     every code that a check can end with: whose it is, what a command then ends with
check     one check's outcome
judging   outcomes from what was found; pure
looking   what is found on this machine. No torch: NVML, psutil, files
line      what is found on the line to the coordinator: round trip, rates
door      who answers there, and whether the token lets us in
doctor    all of it at once, with a deadline
estimate  what taking part will cost; pure
consent   what will be sent and what never is; pure
"""
