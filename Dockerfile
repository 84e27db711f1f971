# The example shop: one image for its beats and its workers. See docker-compose.yml.
FROM python:3.12-slim

WORKDIR /app
COPY pyproject.toml LICENSE README.md ./
COPY celery_idem ./celery_idem
RUN pip install --no-cache-dir ".[postgres]"
COPY example_project ./example_project
COPY tools/ticking.py ./tools/ticking.py

# Celery warns, rightly, when it is root.
RUN useradd --create-home shop
USER shop
