"""Augmentation: of batches on the device, and of single images while they are decoded."""
