# Build:  docker build -t pigeonhole .
# Run:    docker run -p 5000:5000 pigeonhole
#
# The last stage is what is served: the compiled model and what answers with it, without torch and fastai. A learner that
# cannot be compiled stops the build with the reason; `docker build --target dev` makes an image that serves it all the
# same, by learner.predict.

FROM python:3.11-slim-bookworm AS tools
WORKDIR /build
COPY tools/environment.sh tools/
COPY Pipfile Pipfile.lock ./

FROM tools AS learner-packages
RUN tools/environment.sh /opt/venv packages learner && rm -rf /opt/venv/pipenv

FROM tools AS packages
# to download models: docker build --build-arg CATEGORIES="packages store"
ARG CATEGORIES=packages
RUN tools/environment.sh /opt/venv $CATEGORIES && rm -rf /opt/venv/pipenv

FROM python:3.11-slim-bookworm AS app
WORKDIR /app
COPY app.py ./
COPY pigeonhole pigeonhole
# /tmp is the one place that can be written to; matplotlib, which fastai brings along, keeps its cache there too
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp MPLCONFIGDIR=/tmp \
    HOST=0.0.0.0 PORT=5000 UPLOADS=/tmp
EXPOSE 5000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ['PORT'] + '/ping', timeout=4)"]
# without a shell: gunicorn is process 1 and gets SIGTERM itself
CMD ["gunicorn", "-c", "python:pigeonhole.gunicorn_conf", "app:app"]

FROM app AS dev
COPY --from=learner-packages /opt/venv /opt/venv
COPY export.pkl notebook.p[y] ./
ENV ENGINE=learner
USER 10001

FROM dev AS compile
USER root
# if your export needs them: docker build --build-arg ALLOW_PICKLE_GLOBALS=...
ARG MODEL_SHA256=
ARG ALLOW_PICKLE_GLOBALS=
RUN python -m pigeonhole compile export.pkl

FROM app AS serve
COPY --from=packages /opt/venv /opt/venv
COPY --from=compile /app/export.onnx ./
ENV MODEL=export.onnx
USER 10001
