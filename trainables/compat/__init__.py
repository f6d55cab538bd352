"""Every patch and every private name of a library that the project leans on, one file a library.

Each function says what it does, why, what is known upstream and which version it was tried with;
`tests/integration/compat` fails once one no longer works, or is no longer needed. Nothing outside
this folder touches a private name of a library.
"""
