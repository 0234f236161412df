"""Viewer ends: what shows or drives a program."""
