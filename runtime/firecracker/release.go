package firecracker

// What Install brings when it is told no other. Addresses and sums stand nowhere else
// in the project.
const (
	// The newest release of Firecracker without a known hole that this driver speaks to,
	// from its own page of releases, with the sum that is published there.
	pinnedURL    = "https://github.com/firecracker-microvm/firecracker/releases/download/v1.16.1/firecracker-v1.16.1-x86_64.tgz"
	pinnedSHA256 = "382a02a869e4d6d5cb14c40577f9545e8458021ea8b0b2d3fc10ec14d9c242e6"

	// PinnedKernelURL is the guest's kernel, as `make guest-kernel` makes it.
	PinnedKernelURL    = "https://github.com/nacrehq/nacre/releases/download/guest-kernel-6.12.117-1/vmlinux"
	PinnedKernelSHA256 = "2cb669a02b7c91f770164bdeefb0777038d1feaf999f3201a7a9e46172f7ecb9"
	// PinnedKernelBanner is its first message: the source package, compiler and linker
	// that give exactly these bytes.
	PinnedKernelBanner = "Linux version 6.12.117-nacre (nacre@nacre) (gcc (Debian 12.2.0-14+deb12u1) 12.2.0, GNU ld (GNU Binutils for Debian) 2.40) #6.12.117-1~deb12u1 SMP 1970-01-01"
	// PinnedKernelOptions is the sum of guest/kernel/config that it was made with.
	PinnedKernelOptions = "7db3be144309dc4fbfd44ff25440199c598ac374cc2bc97ac6bd80c8445119a8"
)
