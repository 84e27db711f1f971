"""Programs without Celery that tests start several times."""
