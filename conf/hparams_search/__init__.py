"""Hydra configuration, installed as part of `qgru.conf`."""
