"""One Alembic script per version of the tables."""
