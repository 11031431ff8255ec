#!/usr/bin/env bash
# Run all tests, in a fresh environment each, with other versions of Python and of the packages.
#
#   tests/versions.sh newest python3.12 python3.13
#   tests/versions.sh lowest python3.11               # the lower bounds of requirements.txt and requirements-extra.txt
set -euo pipefail
cd "$(dirname "$0")/.."
packages=$1
shift
environment=$(mktemp -d)
trap 'rm -rf "$environment"' EXIT
for python in "$@"; do
    "$python" -m venv --clear "$environment"
    cat requirements.txt requirements-extra.txt > "$environment/requirements.txt"
    if [ "$packages" = lowest ]; then
        export WARNINGS_OF_COMMANDS=error,ignore::DeprecationWarning
        sed -i -E 's/>=([0-9.]+)/==\1.*/' "$environment/requirements.txt"
    fi
    "$environment/bin/pip" install --quiet -r "$environment/requirements.txt"
    "$environment/bin/python" --version
    "$environment/bin/pip" list --format=freeze |
        grep -iE "^(torch|torchvision|opencv-python|numpy|scikit-image|pillow|h5py|tensorboardX|av|matplotlib|onnx\w*)="
    "$environment/bin/python" -m pytest -n 2 -q | tail -n 20
done
