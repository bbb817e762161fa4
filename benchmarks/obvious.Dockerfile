# The image that one would write first, to compare sizes with; the model is left out of both.
#
#   docker build -t obvious -f benchmarks/obvious.Dockerfile benchmarks/peers
#
# The versions are those of Pipfile.lock. Where pip finds torch's CUDA build, as it does by default, the image is several
# gigabytes larger; what is compared is the one with the CPU build.
# hadolint global ignore=DL3013,DL3025,DL3042
FROM python:3.11
WORKDIR /app
COPY flask/app.py shared/by_hand.py ./
ENV VARIANT=learner MODEL=export.pkl
RUN pip install fastai==2.8.12 torch==2.13.0 torchvision==0.28.0 flask gunicorn
CMD gunicorn --bind 0.0.0.0:$PORT app:app
