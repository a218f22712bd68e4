"""Loaders: batches of an epoch on the device, from any step on."""
