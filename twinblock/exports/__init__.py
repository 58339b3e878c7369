"""Exports: the encoder of a run as a folder that other libraries load."""
