"""What is for other projects: nothing here is imported by the rest of the package.

Owns `django_celery_beat` and `redbeat`, schedulers of those projects that stamp what they publish,
and `django`, an app for Django projects. Each needs the extra of its name.
"""
