"""Many workers for one batch: each has a model of its own on a device of its own; lines are leased to them."""
