"""How fast this machine is: whole rounds, and beside them the bare networks that a round cannot do without.

`setup` chooses what is measured, `work` counts it, `bare` runs the networks alone, `whole` runs a round under a
stopwatch, `laps` takes turns between the two, `result` does the arithmetic and says it.
"""
