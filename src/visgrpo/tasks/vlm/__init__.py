"""Vision-language models: what they learn from, stages, what is done with a saved one."""
