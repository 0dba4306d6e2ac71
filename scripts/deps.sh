#!/bin/sh
# Installs the Debian packages that the tests need and this host lacks.
set -eu
want="mmdebstrap:mmdebstrap mkfs.erofs:erofs-utils python3:python3 node:nodejs npm:npm"
missing=""
for pair in $want; do
	command -v "${pair%%:*}" >/dev/null 2>&1 || missing="$missing ${pair##*:}"
done
ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || missing="$missing postgresql"
python3 -c 'import ensurepip' >/dev/null 2>&1 || missing="$missing python3-venv"
getent hosts probe.nacre.localhost >/dev/null 2>&1 || missing="$missing libnss-myhostname"
[ -z "$missing" ] && exit 0
if [ "$(id -u)" != 0 ]; then
	echo "missing packages; install them as root: apt-get install -y$missing" >&2
	exit 1
fi
echo "installing:$missing"
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086
apt-get install -y -q --no-install-recommends $missing >/tmp/nacre-deps.log 2>&1 || {
	apt-get update -q >>/tmp/nacre-deps.log 2>&1
	apt-get install -y -q --no-install-recommends $missing >>/tmp/nacre-deps.log 2>&1
} || { tail -n 30 /tmp/nacre-deps.log >&2; exit 1; }
