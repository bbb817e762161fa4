# Build:  docker build -t pigeonhole .
# Run:    docker run -p 5000:5000 pigeonhole
#
# compile  opens export.pkl with torch and fastai, makes export.onnx of it and proves it; if that fails, the build does
# learner  serves a learner that cannot be compiled, by learner.predict:  docker build --target learner .
# dev      everything there is, for work on a mounted project, with notebooks:  docker build --target dev .
# serve    the last, and so what Heroku gets: export.onnx and what answers with it, nothing else
#
# What changes rarely comes first: a new export.pkl installs nothing again.

# The one place that names the base. The tag moves with the mends of Debian and Python. To build on the very same bytes
# for ever, append the digest that `docker buildx imagetools inspect python:3.11-slim-bookworm` prints: …-bookworm@sha256:…
FROM python:3.11-slim-bookworm AS base
# The official image holds no byte code of Python's own library, and where nothing can be written none is ever kept:
# each start, and each look at its health, would compile it anew. 12 MB, for 0.4 s of the start's 2.
RUN python -m compileall -q --invalidation-mode unchecked-hash \
    -x 'site-packages|/test/|idlelib|lib2to3|ensurepip|tkinter|turtledemo|distutils|pydoc_data' /usr/local/lib/python3.11
WORKDIR /app
# /tmp is the one place that can be written to; matplotlib, which fastai brings along, keeps its cache there too
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp MPLCONFIGDIR=/tmp \
    HOST=0.0.0.0 PORT=5000 UPLOADS=/tmp
EXPOSE 5000
# Ready, and not only alive. A look takes 0.06 s of a processor, so twice a minute; no proxy is asked, which the environment
# may name. The first minute is what Heroku gives a start.
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s CMD ["python", "-ISc", "import http.client, os, sys; \
service = http.client.HTTPConnection('127.0.0.1', int(os.environ['PORT']), timeout=4); \
service.request('GET', '/ready'); \
sys.exit(service.getresponse().status != 200)"]
# without a shell: gunicorn is process 1 and gets SIGTERM itself
CMD ["gunicorn", "-c", "python:pigeonhole.gunicorn_conf", "app:app"]

FROM base AS tools
WORKDIR /build
COPY tools/environment.sh tools/
COPY Pipfile Pipfile.lock ./

FROM tools AS learner-packages
RUN tools/environment.sh /opt/venv packages learner && rm -rf /opt/venv/pipenv "$HOME"/.cache

FROM tools AS packages
# to download models: docker build --build-arg CATEGORIES="packages store"
ARG CATEGORIES=packages
COPY tools/slim.sh tools/
# hadolint ignore=SC2086
RUN tools/environment.sh /opt/venv $CATEGORIES && rm -rf /opt/venv/pipenv && tools/slim.sh /opt/venv

FROM tools AS sbom
RUN tools/environment.sh /opt/sbom sbom
COPY tools/sbom.py tools/
COPY --from=packages /opt/venv /opt/venv
RUN /opt/sbom/bin/python tools/sbom.py /opt/venv /sbom

FROM base AS code
COPY app.py ./
COPY pigeonhole pigeonhole
# whoever builds may have files that only they can read, and whoever runs may have any number
RUN chmod -R a+rX . && python -m compileall -q --invalidation-mode unchecked-hash .

FROM learner-packages AS learner
WORKDIR /app
COPY --from=code /app ./
COPY export.pkl notebook.p[y] ./
RUN chmod a+r ./*
ENV ENGINE=learner
USER 10001

FROM learner AS compile
# if your export needs them: docker build --build-arg ALLOW_PICKLE_GLOBALS=...
ARG MODEL_SHA256=
ARG ALLOW_PICKLE_GLOBALS=
RUN python -m pigeonhole compile export.pkl -o /tmp/export.onnx && chmod a+r /tmp/export.onnx

FROM learner-packages AS dev
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends curl git make && rm -rf /var/lib/apt/lists/*
RUN tools/environment.sh /opt/venv store formats telemetry notebook dev-packages && rm -rf /opt/venv/pipenv "$HOME"/.cache
WORKDIR /app
EXPOSE 8888
USER 10001
# the project is mounted over /app; what changes there is loaded anew
CMD ["gunicorn", "-c", "python:pigeonhole.gunicorn_conf", "--reload", "app:app"]

FROM base AS serve
# revision, creation and source are known to who builds: `make image` adds them
LABEL org.opencontainers.image.title="Pigeonhole" \
      org.opencontainers.image.description="Says what is on a picture, as the fastai learner does that it was made of." \
      org.opencontainers.image.version="0.1.0"
COPY --from=packages /opt/venv /opt/venv
COPY --from=sbom /sbom /usr/share/sbom
COPY --from=code /app ./
# root owns it, so that what serves could not change it
COPY --from=compile --chown=0:0 /tmp/export.onnx ./
ENV MODEL=export.onnx
USER 10001
# what was slimmed answers here, as this user, or the build fails: /ready is 200 after the known-answer test only
RUN python -c "from app import app; said = app.test_client().get('/ready'); print(said.text); assert said.status_code == 200"
