"""Packets to frames and back: open, decode, encode, mux, copy. Knows PyAV and NumPy; no torch, no ray."""
