"""RAFT for Stable Diffusion."""
