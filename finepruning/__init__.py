"""Backdoor attacks on neural networks and the pruning defenses against them."""
