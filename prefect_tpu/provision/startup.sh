#!/bin/bash
# Makes this TPU VM a host of a Ray cluster. Cloud TPU runs it as root, on every host of the slice, at every start.
# prefect_tpu fills in what is in double braces; see docs/queued-resources.md for how to put another script in its place.
set -euo pipefail

# Root makes a user without rights, lifts its limits and hands over. Nothing is installed or run as root, and root writes
# nowhere where that user may write.
RAY_USER=prefect-tpu
export RAY_HOME=${PREFECT_TPU_HOME:-/var/lib/prefect-tpu}
export PROGRAMS=${PREFECT_TPU_PROGRAMS:-/usr/local/lib/prefect-tpu}
id -u $RAY_USER >/dev/null 2>&1 ||
  useradd --system --create-home --home-dir "$RAY_HOME" --shell /usr/sbin/nologin $RAY_USER
ulimit -n 65536 || echo "the limit of open files stays $(ulimit -n)"
ulimit -l unlimited || echo "the limit of locked memory stays $(ulimit -l)" # libtpu maps memory for the chips
install -d -m 755 "$PROGRAMS"

cat >"$PROGRAMS/tpu_vm.py" <<'END_OF_TPU_VM'
# include tpu_vm.py
END_OF_TPU_VM

cat >"$PROGRAMS/join.sh" <<'END_OF_JOIN'
set -euo pipefail
umask 077
export HOME=$RAY_HOME
export TPU_NAME={{slice_name}} # Ray calls the slice so; it is also the id of the queued resource
cd "$HOME"

# Hosts need the driver's versions of Python, Ray and prefect_tpu. An image that brings them is left as it is.
ENVIRONMENT=${PREFECT_TPU_ENVIRONMENT:-/opt/prefect-tpu}
if [[ ! -x $ENVIRONMENT/bin/ray ]]; then
  ENVIRONMENT=$HOME/environment
fi
if [[ $ENVIRONMENT == "$HOME/environment" && ! -e $ENVIRONMENT/complete ]]; then
  cat >uv.txt <<'END_OF_UV'
uv==0.9.30 \
  --hash=sha256:4366dd740ac9ad3ec50a58868a955b032493bb7d7e6ed368289e6ced8bbc70f3 \
  --hash=sha256:93049ba3c41fa2cc38b467cb78ef61b2ddedca34b6be924a5481d7750c8111c6
END_OF_UV
  python3 -m pip install --quiet --require-hashes --no-deps --only-binary :all: --upgrade --target uv -r uv.txt
  mkdir -p wheels
  requirements=()
  for one in {{packages}}; do
    if [[ $one == gs://* ]]; then
      file=$HOME/wheels/$(basename "${one%%#*}")
      python3 "$PROGRAMS/tpu_vm.py" fetch "$one" "$file"
      one=$file
    fi
    requirements+=("$one")
  done
  lock={{host_lock}}
  if [[ -n $lock ]]; then
    if [[ $lock == gs://* ]]; then
      python3 "$PROGRAMS/tpu_vm.py" fetch "$lock" "$HOME/lock.txt"
      lock=$HOME/lock.txt
    fi
    requirements=(--require-hashes --find-links "$HOME/wheels" -r "$lock")
  fi
  uv/bin/uv venv --quiet --clear --python {{python_version}} "$ENVIRONMENT"
  uv/bin/uv pip install --quiet --python "$ENVIRONMENT/bin/python" "${requirements[@]}"
  touch "$ENVIRONMENT/complete"
fi
export PATH=$ENVIRONMENT/bin:$PATH

# Ray finds chips, worker id, pod type and topology in the VM's own metadata. It is joined again whenever it ends, with
# the token as it is then, which stands in a file of this user and nowhere else.
secret={{token_secret}}
while true; do
  if [[ -z $secret ]]; then
    export RAY_AUTH_MODE=disabled
  elif python3 "$PROGRAMS/tpu_vm.py" secret "$secret" "$HOME/ray-token"; then
    export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$HOME/ray-token
  else
    sleep "${PREFECT_TPU_PAUSE_SECONDS:-10}"
    continue
  fi
  ray start --address={{ray_address}} --block --disable-usage-stats || true
  sleep "${PREFECT_TPU_PAUSE_SECONDS:-5}"
done
END_OF_JOIN

chmod 644 "$PROGRAMS/tpu_vm.py" "$PROGRAMS/join.sh"
exec runuser -u $RAY_USER -- /bin/bash "$PROGRAMS/join.sh"
