"""Any program's stdin, stdout and stderr on a socket, and Python objects over the same kind of connection.

Importing this package loads none of its modules: the start of the command `sockstream` is part of every
program it runs.
"""

__version__ = "0.1.0"
