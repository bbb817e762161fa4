#!/usr/bin/env bash
# Build the image, push it to a Heroku app of yours and release it; each command is printed before it runs.
#
#   APP=name tools/push_heroku.sh
#
# From the environment, too, the Dockerfile's own arguments: CATEGORIES, MODEL_SHA256 and ALLOW_PICKLE_GLOBALS.
set -eu

refuse() {
    echo "$1" >&2
    exit 1
}

run() (
    set -x
    "$@"
)

app=${APP:-}
[ -n "$app" ] || refuse "which app of yours? make push-heroku APP=name; \`heroku create\` makes one"
[[ $app =~ ^[a-z][a-z0-9-]*$ ]] || refuse "APP=$app is no name of a Heroku app: small letters, digits and dashes"
command -v heroku >/dev/null || refuse "this needs the Heroku CLI: https://devcenter.heroku.com/articles/heroku-cli"
docker info >/dev/null 2>&1 || refuse "this needs Docker, with its engine running"

arguments=
for name in CATEGORIES MODEL_SHA256 ALLOW_PICKLE_GLOBALS; do
    eval "value=\${$name:-}"
    [ -z "$value" ] || arguments=$arguments${arguments:+,}$name=$(printf %s "$value" | tr , ' ')  # a comma begins the next one
done
set -- container:push web --app "$app"
[ -z "$arguments" ] || set -- "$@" --arg "$arguments"

run heroku container:login
# Heroku runs x86-64, which an Apple computer would not build by itself, and takes images without attestations only
run env DOCKER_DEFAULT_PLATFORM=linux/amd64 BUILDX_NO_DEFAULT_ATTESTATIONS=1 heroku "$@"
run heroku container:release web --app "$app"
