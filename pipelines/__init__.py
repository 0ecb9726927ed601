"""Scheduled flows: thin, each a plain call of what `nowcast` does."""
