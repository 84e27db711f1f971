"""The environment variables from which the Django project of the tests has its settings."""

DATABASE = "IDEM_CONTRIB_DATABASE"
MORE = "IDEM_CONTRIB_MORE"
