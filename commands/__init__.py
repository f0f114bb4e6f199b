"""The commands: each parses, calls one verb, and prints what a person wants to know next.

Modules import what they need inside their functions, so that ``phistill --help`` costs nothing.
"""
