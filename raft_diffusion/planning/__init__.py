"""The arithmetic before the hours: what a run will make, and how long and how large it will be. No torch.

walk -> costs (what a network computes) -> networks (which ones a run has) -> speed, machine -> forecast
"""
