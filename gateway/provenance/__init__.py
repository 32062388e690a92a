"""What files say about where they come from."""
