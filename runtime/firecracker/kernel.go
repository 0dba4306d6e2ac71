package firecracker

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/internal/sparse"
)

func (from Release) bringKernel(ctx context.Context, path string) error {
	build, advice := from.pinnedKernel && from.BuildKernel != nil, kernelAdvice
	if build {
		advice = ""
	}
	err := from.source("the guest's kernel", from.Kernel, from.KernelSHA256, advice).File(ctx, path)
	// One that is there and not the one that was meant is no reason to build another.
	if build && ctx.Err() == nil && nacre.IsCode(err, nacre.CodeUnavailable) {
		err = from.buildKernel(ctx, path, err)
	}
	if err != nil {
		return err
	}
	if err := checkKernel(path); err != nil {
		return err
	}
	return os.Chmod(path, 0o444)
}

// buildKernel puts the kernel at path that is made here, for one cannot be had.
func (from Release) buildKernel(ctx context.Context, path string, why error) error {
	built, err := from.BuildKernel(ctx, why)
	if err != nil {
		return err
	}
	if err := sparse.Clone(built, path, 0o644); err != nil {
		return err
	}
	_, err = IsPinnedKernel(path)
	return err
}

// IsPinnedKernel tells whether a kernel that was built is the very one that would be
// downloaded, as it is where source, compiler and linker are the same; it is an error
// then if it is another one. Of other ones nothing can be said.
func IsPinnedKernel(path string) (bool, error) {
	b, err := os.ReadFile(path)
	if err != nil || !bytes.Contains(b, []byte(PinnedKernelBanner)) {
		return false, err
	}
	sum := sha256.Sum256(b)
	if got := hex.EncodeToString(sum[:]); got != PinnedKernelSHA256 {
		return false, nacre.Errorf(nacre.CodeConflict, "the kernel at %s was built of the pinned source by the pinned compiler, and has the SHA-256 %s instead of %s; it was not installed", path, got, PinnedKernelSHA256)
	}
	return true, nil
}

func checkKernel(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return nacre.Wrap(nacre.CodeInvalid, err, "the guest's kernel cannot be read")
	}
	defer f.Close()
	var magic [4]byte
	if _, err := io.ReadFull(f, magic[:]); err != nil || string(magic[:]) != "\x7fELF" {
		return nacre.Errorf(nacre.CodeInvalid, "the guest's kernel must be an uncompressed ELF file (vmlinux)")
	}
	return nil
}
