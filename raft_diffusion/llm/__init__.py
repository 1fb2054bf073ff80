"""RAFT for language models: the same loop with a policy, a tuner and rewards for text. Imports no model library."""
