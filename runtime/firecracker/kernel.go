package firecracker

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"

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
	if err := from.noteOptions(path); err != nil {
		return err
	}
	return os.Chmod(path, 0o444)
}

// noteOptions leaves word beside a kernel of what options it was made with, where that is
// known: of the pinned one, and of one that was built here.
func (from Release) noteOptions(path string) error {
	options := "unknown"
	if from.pinnedKernel || from.KernelBuilt {
		options = PinnedKernelOptions
	}
	sum, err := sumOf(path)
	if err != nil {
		return err
	}
	return os.WriteFile(path+notedSuffix, []byte(sum+" "+options+"\n"), 0o444)
}

const notedSuffix = ".options" // of noteOptions's file

func sumOf(path string) (string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:]), nil
}

// KernelState is how an installed guest kernel stands to the pinned one.
type KernelState struct {
	Name   string // what it calls itself, such as "Linux 6.12.117-nacre"
	Pinned bool   // it is that one, byte for byte
	// Behind says why it is an older one, "" where it is not known to be.
	Behind string
}

// kernelBanner is a kernel's first message: its release, who made it, and the package.
var kernelBanner = regexp.MustCompile(`Linux version ((\d+)\.(\d+)\.?(\d*)[^ \x00\n]*) [^\x00\n]*#[^\x00\n]*`)

// InstalledKernel looks at the kernel that Install put into dir.
func InstalledKernel(dir string) (k KernelState, err error) {
	path := filepath.Join(dir, KernelName)
	b, err := os.ReadFile(path)
	if err != nil {
		return k, err
	}
	digest := sha256.Sum256(b)
	sum := hex.EncodeToString(digest[:])
	own, pinned := kernelBanner.FindSubmatch(b), kernelBanner.FindSubmatch([]byte(PinnedKernelBanner))
	if k.Name = "a kernel of an unknown version"; own != nil {
		k.Name = "Linux " + string(own[1])
	}
	note, _ := os.ReadFile(path + notedSuffix)
	noted, options, _ := strings.Cut(strings.TrimSpace(string(note)), " ")
	switch {
	case sum == PinnedKernelSHA256:
		k.Pinned = true
	case own != nil && compareRelease(own, pinned) < 0:
		k.Behind = fmt.Sprintf("it is older than Linux %s, which this version of nacre was made for", pinned[1])
	case noted == sum && options != "unknown" && options != PinnedKernelOptions:
		k.Behind = "it was made with the options of another version of nacre"
	case bytes.Contains(b, []byte(PinnedKernelBanner)):
		k.Behind = "it is of the same source and compiler as the one that this version of nacre was made for, and another one all the same: its options are those of another version, or it is damaged"
	}
	return k, nil
}

// compareRelease compares two matches of kernelBanner.
func compareRelease(a, b [][]byte) int {
	n := func(m [][]byte) (v version) {
		_, _ = fmt.Sscan(string(m[2]), &v.major)
		_, _ = fmt.Sscan(string(m[3]), &v.minor)
		_, _ = fmt.Sscan(string(m[4]), &v.patch)
		return v
	}
	return n(a).compare(n(b))
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
	_, err = IsPinnedKernel(path) // with the options that the program has
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
