"""One file a command: what it reads, what it prints. `cli` collects them; the work is done elsewhere.

Heavy imports (torch, diffusers, open_clip) happen inside the functions, so that `--help` answers at once.
"""
