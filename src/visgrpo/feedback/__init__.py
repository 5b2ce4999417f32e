"""What people did with a model's answers, as numbers: tables of events, cells, posteriors."""
