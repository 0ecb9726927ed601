"""Readers: one small function per format, path to observations, found by name or by sniffing."""
