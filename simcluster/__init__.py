"""simcluster: which serving strategy, on which GPUs, carries the most requests within targets."""
