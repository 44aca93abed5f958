"""The network's code: where in it something is computed, what is written there, and which branches were taken."""
