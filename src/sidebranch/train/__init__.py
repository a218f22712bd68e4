"""Training: from a config to a trained network and a folder that documents it."""
