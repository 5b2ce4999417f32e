"""The commands of the house itself: what there is, and what a machine and a folder hold."""
