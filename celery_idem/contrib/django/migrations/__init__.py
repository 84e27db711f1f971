"""For ``manage.py migrate``: one file for each version of the ledger's tables.

Owns nothing: each brings the tables to the version of the installed release, by the scripts that
``celery idem upgrade`` uses, whichever of the two is first.
"""
