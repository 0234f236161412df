"""Attacks on running commands, with real processes and sockets: strangers, those in the middle, and members who lie."""
