"""The nano language model: what it learns from, its stages, what is done with a saved one."""
