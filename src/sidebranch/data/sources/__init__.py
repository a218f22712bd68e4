"""Data sets where they are stored: arrays, folders, tar shards, Hugging Face, re-identification."""
