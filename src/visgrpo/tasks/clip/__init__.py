"""Jobs of CLIP classifiers: pre-training, rewards, and what is done with a saved one."""
