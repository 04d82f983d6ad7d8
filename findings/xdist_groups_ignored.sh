#!/usr/bin/env bash
# pytest 9.2.0, pytest-xdist 3.8.0: `--dist loadgroup` no longer keeps tests of one `xdist_group` on
# one worker, without a word. xdist writes the group into an attribute of the test, `_nodeid`, that
# pytest 9.2 has given up; the scheduler, which reads it from the name, finds a group for each test.
# Fixtures and compiled programs that a group shares are made on every worker. pytest 9.1 keeps them.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
cat > "$place/test_group.py" <<'PYTHON'
import os, pathlib, pytest

@pytest.mark.xdist_group("one")
@pytest.mark.parametrize("i", range(8))
def test_of_one_group(i):
    place = pathlib.Path(os.environ["PLACE"]) / os.environ["PYTEST_XDIST_WORKER"]
    place.touch()
    import time; time.sleep(0.3)
PYTHON
for version in 9.1.1 9.2.0; do
    "$place/venv/bin/python" -m pip install --quiet "pytest==$version" pytest-xdist==3.8.0
    export PLACE=$place/workers-$version
    mkdir "$PLACE"
    (cd "$place" && "$place/venv/bin/python" -m pytest -q -p no:cacheprovider -n 2 --dist loadgroup test_group.py) > /dev/null
    echo "pytest $version: $(ls "$PLACE" | wc -l) worker(s) ran the tests of one group"
done
[ "$(ls "$place/workers-9.1.1" | wc -l)" = 1 ] && [ "$(ls "$place/workers-9.2.0" | wc -l)" = 2 ] \
    || { echo "this has changed"; exit 1; }
