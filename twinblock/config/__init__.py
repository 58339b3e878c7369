"""The form of a run: its fields, recipes, what is laid over them, and how two runs differ."""
