"""What state things are in."""
