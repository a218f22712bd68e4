"""From a model and photographs to answers."""
