#!/bin/bash
# Makes this TPU VM a host of a Ray cluster. Cloud TPU runs it as root, on every host of the slice, at every start.
# prefect_tpu fills in what is in double braces; see docs/queued-resources.md for how to put another script in its place.
set -euo pipefail

export TPU_NAME={{slice_name}} # Ray calls the slice so; it is also the id of the queued resource
export HOME=/root
ENVIRONMENT=/opt/prefect-tpu

# Hosts need the driver's versions of Python, Ray and prefect_tpu. An image that brings them is left as it is.
if [[ ! -x $ENVIRONMENT/bin/ray ]]; then
  python3 -m pip install --quiet --upgrade uv
  python3 -m uv venv --quiet --python {{python_version}} $ENVIRONMENT
  python3 -m uv pip install --quiet --python $ENVIRONMENT/bin/python {{packages}}
fi
export PATH=$ENVIRONMENT/bin:$PATH

# Ray finds chips, worker id, pod type and topology in the VM's own metadata. It is joined again whenever it ends.
ulimit -n 65536
while true; do
  ray start --address={{ray_address}} --block --disable-usage-stats || true
  sleep 5
done
