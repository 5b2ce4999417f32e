"""Images, masks, text and feedback tables; built-in worlds; everything seeded."""
