#!/bin/sh
# Builds the guest kernel of Firecracker machines from Debian's kernel source and
# the options in "config", and prints the path of the result. It is kept under
# its inputs' hash: a second call costs nothing. Debian's package is the source
# because its security updates come by themselves, with a signature.
#
# The same package, compiler and linker give the same bytes, wherever and whenever
# they are put together. The kernel's first message names all three.
#
#   NACRE_CACHE   where it is kept, default /var/cache/nacre
#   JOBS          default: one a processor
set -eu
here=$(cd "$(dirname "$0")" && pwd)
cache=${NACRE_CACHE:-/var/cache/nacre}
package=linux-source-6.12

version() { dpkg-query -W -f '${Version}' "$package" 2>/dev/null || true; }
candidate() { apt-cache policy "$package" 2>/dev/null | sed -n 's/^ *Candidate: *//p' | grep -v none || true; }

# The configuration decides what the kernel is; a newer package is a newer kernel.
pin=$(version)
[ -n "$pin" ] || pin=$(candidate)
if [ -z "$pin" ]; then
	apt-get update -q >/dev/null 2>&1 || true
	pin=$(candidate)
fi
[ -n "$pin" ] || { echo "guest kernel: apt offers no $package (Debian 12 and later do)" >&2; exit 1; }
key=$(cat "$here/config" "$here/build.sh" | { cat; echo "$pin"; } | sha256sum | cut -c1-16)
out=$cache/guest-kernel-$key
if [ -f "$out/vmlinux" ]; then
	echo "$out/vmlinux"
	exit 0
fi

mkdir -p "$cache"
exec 9>"$cache/guest-kernel.lock"
flock 9
[ -f "$out/vmlinux" ] && { echo "$out/vmlinux"; exit 0; }

missing=""
for p in gcc make bc flex bison xz-utils libelf-dev "$package"; do
	dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing="$missing $p"
done
if [ -n "$missing" ]; then
	echo "guest kernel: installing$missing" >&2
	# shellcheck disable=SC2086
	DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $missing >&2
fi

rm -rf "$cache"/guest-kernel.tmp.* # of one that was killed
work=$(mktemp -d "$cache/guest-kernel.tmp.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM
echo "guest kernel: building $package $pin, about five minutes of two processors" >&2
# Header farms of graphics drivers and other processors are two thirds of the source.
tar -C "$work" --strip-components 1 -xf "/usr/src/$package.tar.xz" \
	--exclude='*/drivers/gpu/drm/amd/include' --exclude='*/tools/testing' --exclude='*/arch/*/boot/dts/*' --exclude='*/sound/*.[ch]'
cd "$work"
umask 022
# Nothing of the caller's: neither flags nor time zone nor language nor the date.
plain() {
	env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME="$work" LC_ALL=C TZ=UTC \
		KBUILD_BUILD_TIMESTAMP=1970-01-01 KBUILD_BUILD_USER=nacre KBUILD_BUILD_HOST=nacre KBUILD_BUILD_VERSION="$pin" "$@"
}
plain make -s tinyconfig >/dev/null
plain ./scripts/kconfig/merge_config.sh -m .config "$here/config" >/dev/null
plain make -s olddefconfig >/dev/null
# Kconfig drops what it does not like without a word.
bad=$(grep -E '^CONFIG_|^# CONFIG_.* is not set' "$here/config" | while read -r line; do
	case $line in
	'# '*) name=${line#\# }; name=${name%% *}; grep -q "^$name=" .config && echo "$name is set" ;;
	*) grep -qxF "$line" .config || echo "$line was not taken" ;;
	esac
done || true)
if [ -n "$bad" ]; then
	echo "guest kernel: $bad" >&2
	exit 1
fi
plain nice -n 15 make -s -j"${JOBS:-$(nproc)}" vmlinux >"$work/build.log" 2>&1 || { tail -n 40 "$work/build.log" >&2; exit 1; }
strip -o vmlinux.stripped vmlinux
mkdir -p "$out.tmp"
cp .config "$out.tmp/config"
mv vmlinux.stripped "$out.tmp/vmlinux"
rm -rf "$out"
mv "$out.tmp" "$out"
echo "$out/vmlinux"
