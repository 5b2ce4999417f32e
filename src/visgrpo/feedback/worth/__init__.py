"""From sums over events to what every label of every image is worth. No torch."""
