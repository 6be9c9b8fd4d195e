"""What must happen when something breaks at the worst moment."""
