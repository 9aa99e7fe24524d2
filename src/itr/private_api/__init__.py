"""Every use of a private name of another library, one file a library. Each names the public way that is missing.

The libraries may change such names in any release. Here they are easy to find and to replace, and
`tests/test_private_api.py` uses each of them, so that a failing test names what has changed.
"""
