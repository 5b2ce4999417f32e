"""Rewards: what an output earns. Plain callables that know no model."""
