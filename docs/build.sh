#!/usr/bin/env bash
# Build the documentation into site/. A broken link, anchor, reference or formula fails the build.
# `docs/build.sh serve` serves it on loopback instead and follows changes of the pages.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="docs${PYTHONPATH:+:$PYTHONPATH}"  # where the Markdown extension mathml lies

rm -rf build/reference docs/pages/reference docs/pages/objects.inv
python -m sphinx -n -W --keep-going -q -b material docs/reference build/reference
cp -r build/reference/reference docs/pages/reference
cp build/reference/objects.inv docs/pages/objects.inv
python docs/gallery.py examples docs/pages/reference

if [ "${1:-build}" = serve ]; then
    exec python -m mkdocs serve --strict
fi
python -m mkdocs build --strict --clean  # never -q: it hides broken anchors, and then they pass
python docs/search_from_disk.py site
python docs/check_site.py site
