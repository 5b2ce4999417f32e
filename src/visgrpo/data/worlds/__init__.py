"""Built-in data, drawn or shipped: no download, everything a function of its seed."""
