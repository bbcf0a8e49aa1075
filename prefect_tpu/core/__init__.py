"""Pure parts: standard library only, no clock, no I/O."""
