# Build:  docker build -t pigeonhole .
# Run:    docker run -p 5000:5000 pigeonhole

FROM python:3.11-slim-bookworm AS environment
WORKDIR /build
COPY tools/environment.sh tools/
COPY Pipfile Pipfile.lock ./
RUN tools/environment.sh /opt/venv packages learner && rm -rf /opt/venv/pipenv

FROM python:3.11-slim-bookworm
COPY --from=environment /opt/venv /opt/venv
WORKDIR /app
COPY app.py export.pkl notebook.p[y] ./
COPY pigeonhole pigeonhole
# /tmp is the one place that can be written to; matplotlib, which fastai brings along, keeps its cache there too
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp MPLCONFIGDIR=/tmp \
    HOST=0.0.0.0 PORT=5000 UPLOADS=/tmp
USER 10001
EXPOSE 5000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ['PORT'] + '/ping', timeout=4)"]
# without a shell: gunicorn is process 1 and gets SIGTERM itself
CMD ["gunicorn", "-c", "python:pigeonhole.gunicorn_conf", "app:app"]
