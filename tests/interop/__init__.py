"""A second implementation of the protocol, written from docs/protocol.md alone."""
