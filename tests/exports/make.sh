#!/usr/bin/env bash
# The exports in fixtures/, made anew: each era of fastai in an environment of its own, on Debian, as root.
#
#     tests/exports/make.sh PHOTOS [KIND…]
#
# PHOTOS holds train/CLASS/ and validation/CLASS/. Everything happens in $HOME_OF_ANA, which is not the reader's folder,
# because an export holds the paths of its maker. torch 1.13 and torchvision 0.14 are Debian 12's, Python 3.13 and torch
# 2.6 Debian 13's, in a tree of their own. It took 10 minutes on two cores.
set -euo pipefail

photos=$(realpath "$1")
shift
here=$(realpath "$(dirname "$0")")
root=$(realpath "$here/../..")
ana=${HOME_OF_ANA:-/home/ana}
trixie=$ana/trixie

apt-get install -y --no-install-recommends debootstrap python3-venv python3-torch python3-torchvision python3-pandas \
    python3-matplotlib python3-scipy python3-sklearn python3-yaml python3-requests >/dev/null
mkdir -p "$ana/shop"
ln -sfn "$photos" "$ana/shop/photos"
ln -sfn "$root/.venv" "$ana/env-2.8.12"
cp "$here/make.py" "$ana/shop/make.py"

environment() { # NAME PACKAGE…: beside Debian's torch, and without what the packages ask for
    [ -d "$ana/env-$1" ] || /usr/bin/python3 -m venv --system-site-packages "$ana/env-$1"
    "$ana/env-$1/bin/pip" install --quiet --no-deps "${@:2}"
}
environment 0.0.30 fastai2==0.0.30 fastcore==0.1.35 fastprogress==0.2.6
"$ana/env-0.0.30/bin/pip" install --quiet ipython
environment 2.0.13 fastai==2.0.13 fastcore==1.0.20 fastprogress==1.0.0 timm==0.4.12
"$ana/env-2.0.13/bin/pip" install --quiet ipykernel nbclient
environment 2.3.1 fastai==2.3.1 fastcore==1.3.29 fastprogress==1.0.3 timm==0.4.12
environment 2.5.6 fastai==2.5.6 fastcore==1.4.5 fastprogress==1.0.3 fastdownload==0.0.7 timm==0.5.4
environment 2.7.19 fastai==2.7.19 fastcore==1.7.29 fastprogress==1.0.3 fastdownload==0.0.7 timm==0.9.16 \
    huggingface_hub==0.23.4 safetensors tqdm fsspec filelock packaging

environment 1.0.61 fastai==1.0.61 fastprogress==0.2.6 bottleneck==1.3.8 numexpr==2.8.7 nvidia-ml-py3
"$ana/env-1.0.61/bin/pip" install --quiet ipython==8.12

export_all() { # ENVIRONMENT FOLDER KIND…
    (cd "$ana/shop" && "$ana/env-$1/bin/python" make.py photos "$2" "${@:3}")
    keep "$2"
}
keep() {
    rm -rf "$here/fixtures/$1"
    mkdir -p "$here/fixtures"
    cp -r "$ana/shop/$1" "$here/fixtures/$1"
    rm -rf "$here/fixtures/$1/models"
}

mkdir -p "$here/fixtures/fastai-1.0.61"
cp "$here/make_1.py" "$ana/shop/make_1.py"
(cd "$ana/shop" && "$ana/env-1.0.61/bin/python" make_1.py photos fastai-1.pkl)
cp "$ana/shop/fastai-1.pkl" "$here/fixtures/fastai-1.0.61/plain.pkl"
export_all 0.0.30 fastai2-0.0.30 plain multi-label
for version in 2.0.13 2.3.1 2.5.6 2.7.19; do
    export_all "$version" "fastai-$version" "$@"
done

# A notebook, for what only a notebook leaves in an export: display handles and progress bars of HTML.
(cd "$ana/shop" && "$ana/env-2.0.13/bin/python" - <<'NOTEBOOK'
import nbformat
from nbclient import NotebookClient

code = "import sys; sys.argv = ['make.py']\nexec(open('make.py').read())\n"
code += "main('photos', 'fastai-2.0.13-notebook', 'function-in-main')"
NotebookClient(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)]), timeout=600).execute()
NOTEBOOK
)
keep fastai-2.0.13-notebook

# fastai 2.8 on the project's own Python, with its cure for torchvision.
(cd "$ana/shop" && PYTHONPATH=$root "$ana/env-2.8.12/bin/python" -c '
import runpy, sys
from pigeonhole.model.torch_ready import import_torch
import_torch()
sys.path.remove(sys.path[1])
sys.argv = ["make.py", "photos", "fastai-2.8.12", *sys.argv[1:]]
runpy.run_path("make.py", run_name="__main__")' "$@")
keep fastai-2.8.12

# and on Python 3.13
[ -d "$trixie/usr" ] || debootstrap --variant=minbase --include=python3-torch,python3-torchvision,python3-venv,\
python3-pandas,python3-matplotlib,python3-scipy,python3-sklearn,python3-requests,python3-yaml,ca-certificates \
    trixie "$trixie" >/dev/null
trap 'umount "$trixie/proc" "$trixie/dev" "$trixie$ana/shop" "$trixie$photos" 2>/dev/null || true' EXIT
for folder in proc dev; do
    mountpoint -q "$trixie/$folder" || mount --bind "/$folder" "$trixie/$folder"
done
mkdir -p "$trixie$ana/shop" "$trixie$photos"
mountpoint -q "$trixie$ana/shop" || mount --bind "$ana/shop" "$trixie$ana/shop"
mountpoint -q "$trixie$photos" || mount --bind "$photos" "$trixie$photos"
cp /etc/resolv.conf "$trixie/etc/resolv.conf"
cp /etc/ssl/certs/ca-certificates.crt "$trixie/etc/ssl/certs/ca-certificates.crt"
chroot "$trixie" sh -c "
    [ -d $ana/env ] || python3 -m venv --system-site-packages $ana/env
    $ana/env/bin/pip install --quiet --no-deps fastai==2.8.12 fastcore==2.2.39 fasttransform==0.0.5 cloudpickle==3.1.2 \
        plum-dispatch==2.9.0 beartype fastprogress==1.1.6 fastdownload timm==1.0.31 rich typing_extensions packaging \
        safetensors huggingface_hub tqdm filelock python-fasthtml starlette apswutils apsw fastlite httpx anyio httpcore \
        h11 sniffio idna certifi itsdangerous python-multipart uvicorn click oauthlib beautifulsoup4 soupsieve
    cd $ana/shop && $ana/env/bin/python make.py photos fastai-2.8.12-python-3.13 $*"
keep fastai-2.8.12-python-3.13
