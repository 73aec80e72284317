"""Tables and figures of what sweeps have measured; nothing is measured here."""
