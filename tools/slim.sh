#!/bin/sh
# Take out of an environment what a service of one export.onnx on a CPU never opens. What is left has to answer the
# known-answer test: the build runs it.
#
#   tools/slim.sh FOLDER        for example: /opt/venv
set -eu

packages=$(echo "$1"/lib/python3.*/site-packages)
openvino=$packages/openvino

# OpenVINO computes on the processor here: 40 MB for Intel's GPUs with 9 MB of their tuning tables, 11 MB for its NPUs
rm -f "$openvino"/libs/libopenvino_intel_gpu_plugin.so "$openvino"/libs/cache.json
rm -f "$openvino"/libs/libopenvino_intel_npu_plugin.so

# it reads ONNX and nothing else: 15 MB of readers for the files of other frameworks
for reader in gguf jax paddle pytorch tensorflow tensorflow_lite; do
    rm -f "$openvino"/libs/libopenvino_"$reader"_frontend.so*
done

# nobody compiles C++ against it here, or converts models with its command line tools
rm -rf "$openvino"/include "$openvino"/cmake "$openvino"/tools "$1"/bin/ovc "$1"/bin/benchmark_app

# packages' own tests, and what only type checkers read
find "$packages" -depth -type d -name tests -exec rm -rf {} +
find "$packages" -name '*.pyi' -delete

# what installs: the image is built anew instead. Python's own pip stays in the base below.
"$1"/bin/python -m pip uninstall --quiet --yes pip setuptools
rm -f "$1"/bin/activate* "$1"/bin/Activate.ps1
