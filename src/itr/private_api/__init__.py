"""All uses of private names of other libraries, one file per library, each with the public API that is missing.

The libraries may change such names in any release. Here they are easy to find and to replace, and
`tests/test_private_api.py` uses each of them, so that a failing test shows what has changed.
"""
