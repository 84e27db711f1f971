"""Settings of a small Django project, whose database the test names."""

from __future__ import annotations

import json
import os

from tests.contrib.apps import names

DATABASES = {"default": json.loads(os.environ[names.DATABASE])}
INSTALLED_APPS = ["django_celery_beat", "celery_idem.contrib.django"]
USE_TZ = True
TIME_ZONE = "Europe/Berlin"
SECRET_KEY = "of the tests"
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"

globals().update(json.loads(os.environ.get(names.MORE, "{}")))
