"""Tables of what people did: staged, checked, matched with images. No torch."""
