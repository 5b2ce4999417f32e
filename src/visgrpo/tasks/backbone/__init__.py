"""Jobs of vision backbones with a head: pre-training, classes, masks, and saved ones in use."""
