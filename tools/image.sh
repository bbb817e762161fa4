#!/usr/bin/env bash
# Build the container image, with docker or, where no Docker engine answers, with podman; each command is printed first.
#
#   tools/image.sh
#
# From the environment: IMAGE, its name (default pigeonhole); TARGET, the Dockerfile's stage (default the last); and the
# Dockerfile's own arguments CATEGORIES, MODEL_SHA256 and ALLOW_PICKLE_GLOBALS.
set -eu

run() (
    set -x
    "$@"
)

set -- -t "${IMAGE:-pigeonhole}"
[ -z "${TARGET:-}" ] || set -- "$@" --target "$TARGET"
for name in CATEGORIES MODEL_SHA256 ALLOW_PICKLE_GLOBALS; do
    eval "value=\${$name:-}"
    [ -z "$value" ] || set -- "$@" --build-arg "$name=$value"
done

# what is not known is left out: a copy without git has no revision
set -- "$@" --label "org.opencontainers.image.created=$(date -u +%Y-%m-%dT%H:%M:%SZ)"
if revision=$(git describe --always --abbrev=40 --exclude '*' --dirty 2>/dev/null); then
    set -- "$@" --label "org.opencontainers.image.revision=$revision"
fi
case $(git remote get-url origin 2>/dev/null) in
    https://*[@?]*) ;;  # it may hold a password
    https://*) set -- "$@" --label "org.opencontainers.image.source=$(git remote get-url origin)" ;;
esac

if docker info >/dev/null 2>&1; then
    run docker build "$@" .
elif podman info >/dev/null 2>&1; then
    run podman build --format docker "$@" .  # OCI's own format has no HEALTHCHECK
else
    echo "building the image needs Docker, with its engine running, or podman" >&2
    exit 1
fi
