"""Collecting judgements: which labels are offered, the store, and the page people judge on."""
