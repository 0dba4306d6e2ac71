package nacre

import "context"

// RootFS is what a machine's file system is made of on this host.
type RootFS struct {
	Image    string // read-only EROFS image
	UpperDir string // directory of the writable layer, on disk
	UpperMiB int    // hard size of the writable layer
}

// ImageStore keeps root file systems on this host. All methods may run at once.
type ImageStore interface {
	// Import brings a finished EROFS image into the store as the build, verified
	// and synced. A repeat of the same build is no error and copies nothing.
	Import(ctx context.Context, b BuildID, erofsPath string) error

	// Prepare makes the file system of a machine ready: the image on this host
	// and an empty writable layer. An unknown build is CodeNotFound; a full disk
	// CodeNoSpace.
	Prepare(ctx context.Context, b BuildID, id MachineID, diskMiB int) (RootFS, error)

	// Release deletes the machine's writable layer. A repeat is no error.
	Release(ctx context.Context, id MachineID) error

	// Sweep deletes writable layers of machines that keep does not know.
	Sweep(ctx context.Context, keep func(MachineID) bool) error
}
