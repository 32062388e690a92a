"""Media files from arrays and back: numpy and one codec a module, nothing else of this project."""
