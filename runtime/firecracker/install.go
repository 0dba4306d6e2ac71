package firecracker

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"regexp"

	"golang.org/x/sys/unix"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/internal/fetch"
	"github.com/nacrehq/nacre/internal/sparse"
)

// Names of what Install puts into its directory.
const (
	VMMName    = "firecracker"
	JailerName = "jailer"
	KernelName = "vmlinux"
)

// Release says where what Install brings comes from: a path, or an https URL, which
// demands a sum. "" is what this driver was made for, from the pages in release.go.
type Release struct {
	// Source is Firecracker's archive (.tgz), or a directory that holds the unpacked
	// programs.
	Source string
	SHA256 string // of the archive, in hex
	// Kernel is the guest's, an uncompressed vmlinux.
	Kernel       string
	KernelSHA256 string // in hex
	// KernelBuilt tells that Kernel was made by this program's own recipe.
	KernelBuilt bool
	// BuildKernel makes the kernel on this host and returns its path. It is called where the
	// one that this driver was made for cannot be downloaded, and told why. May be nil.
	BuildKernel func(ctx context.Context, why error) (string, error)
	// Progress is told how much of a download is there; total is -1 when nobody knows.
	Progress func(what string, done, total int64)
	// Client downloads; default http.DefaultClient, which goes by HTTPS_PROXY.
	Client *http.Client
	// AllowHoles takes a release with known holes.
	AllowHoles bool

	pinnedKernel bool // nobody said which
}

// Installed returns the configuration of what Install put into dir; ok tells whether
// it is all there.
func Installed(dir string) (c Config, ok bool) {
	c = Config{Firecracker: filepath.Join(dir, VMMName), Jailer: filepath.Join(dir, JailerName), Kernel: filepath.Join(dir, KernelName)}
	for _, p := range []string{c.Firecracker, c.Jailer, c.Kernel} {
		if st, err := os.Stat(p); err != nil || !st.Mode().IsRegular() {
			return c, false
		}
	}
	return c, true
}

// What is said where something cannot be downloaded.
const (
	releaseAdvice = "Get it another way and give its path with --from"
	kernelAdvice  = "Have it built on this host, which takes a quarter of an hour, with --build-kernel; or get it another way, such as by `make guest-kernel` in nacre's source on another Debian, and give its path with --kernel"
)

// Install checks a release and a kernel and puts them into dir. A release that the
// driver would refuse is refused here. What was there before is replaced file by
// file once all is there, and kept when anything fails; running machines keep theirs.
// Who is killed in it leaves what the next call takes away.
func Install(ctx context.Context, dir string, from Release) (string, error) {
	if err := from.complete(); err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	unlock, err := alone(dir)
	if err != nil {
		return "", err
	}
	defer unlock()
	tmp, err := os.MkdirTemp(dir, unfinished)
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	// The kernel last, for it may be built.
	if err := from.bringPrograms(ctx, tmp); err != nil {
		return "", err
	}
	if err := from.bringKernel(ctx, filepath.Join(tmp, KernelName)); err != nil {
		return "", err
	}
	c, _ := Installed(tmp)
	r := &Runtime{cfg: c}
	r.cfg.AllowHoles = from.AllowHoles
	if err := r.checkPrograms(); err != nil {
		return "", err
	}
	return r.version.String(), replace(dir, tmp)
}

// complete fills in what is brought when nobody says.
func (from *Release) complete() error {
	from.pinnedKernel = from.Kernel == ""
	for _, f := range []struct {
		field, flag          string
		source, sum          *string
		pinned, pinnedSHA256 string
	}{
		{"sha256", "--from", &from.Source, &from.SHA256, pinnedURL, pinnedSHA256},
		{"kernel-sha256", "--kernel", &from.Kernel, &from.KernelSHA256, PinnedKernelURL, PinnedKernelSHA256},
	} {
		if *f.source != "" {
			continue
		}
		if *f.sum != "" {
			return nacre.Invalidf(f.field, "it is of a file: say which, by %s", f.flag)
		}
		*f.source, *f.sum = f.pinned, f.pinnedSHA256
	}
	return nil
}

// unfinished begins the names of what an Install has in hand.
const unfinished = ".tmp-"

// alone waits for no other Install into dir, and takes away what killed ones left.
func alone(dir string) (unlock func(), err error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		d.Close()
		return nil, nacre.Wrap(nacre.CodeConflict, err, "another `nacre setup firecracker` is at work in "+dir)
	}
	left, err := filepath.Glob(filepath.Join(dir, unfinished+"*"))
	for _, l := range left {
		err = errors.Join(err, os.RemoveAll(l))
	}
	if err != nil {
		d.Close()
		return nil, err
	}
	return func() { d.Close() }, nil
}

// replace puts what is in tmp into dir, for good.
func replace(dir, tmp string) error {
	names := []string{KernelName, KernelName + notedSuffix, JailerName, VMMName}
	for _, name := range names {
		if err := persist(filepath.Join(tmp, name)); err != nil {
			return err
		}
	}
	for _, name := range names {
		if err := os.Rename(filepath.Join(tmp, name), filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return persist(dir)
}

func persist(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func (from Release) source(what, source, sum, advice string) fetch.Source {
	return fetch.Source{What: what, From: source, SHA256: sum, Advice: advice, Max: maxRelease, Client: from.Client,
		Progress: func(done, total int64) {
			if from.Progress != nil {
				from.Progress(what, done, total)
			}
		}}
}

// bringPrograms puts the two programs into dir.
func (from Release) bringPrograms(ctx context.Context, dir string) error {
	if st, err := os.Stat(from.Source); err == nil && st.IsDir() {
		return copyPrograms(from.Source, dir)
	}
	archive := filepath.Join(dir, "archive")
	if err := from.source("the release", from.Source, from.SHA256, releaseAdvice).File(ctx, archive); err != nil {
		return err
	}
	return unpack(archive, dir)
}

func copyPrograms(from, dir string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	found := 0
	for _, e := range entries {
		if name := programName(e.Name()); name != "" && e.Type().IsRegular() {
			if err := sparse.Clone(filepath.Join(from, e.Name()), filepath.Join(dir, name), 0o755); err != nil {
				return err
			}
			found++
		}
	}
	return foundBoth(found)
}

func foundBoth(n int) error {
	if n != 2 {
		return nacre.Errorf(nacre.CodeInvalid, "the release holds %d of the two programs firecracker and jailer", n)
	}
	return nil
}

// maxRelease bounds a download and each program in it, in bytes.
const maxRelease = 256 << 20

// Firecracker's archives hold release-v1.16.0-x86_64/firecracker-v1.16.0-x86_64 and
// jailer-v1.16.0-x86_64 beside others with longer names.
var programFile = regexp.MustCompile(`^(firecracker|jailer)(-v[0-9.]+-x86_64)?$`)

func programName(base string) string {
	m := programFile.FindStringSubmatch(base)
	if m == nil {
		return ""
	}
	return m[1]
}

func unpack(archive, dir string) error {
	f, err := os.Open(archive)
	if err != nil {
		return nacre.Wrap(nacre.CodeInvalid, err, "the release cannot be read")
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return nacre.Wrap(nacre.CodeInvalid, err, "the release is no gzip archive")
	}
	found := 0
	for t := tar.NewReader(z); ; {
		h, err := t.Next()
		if err == io.EOF {
			return foundBoth(found)
		}
		if err != nil {
			return nacre.Wrap(nacre.CodeInvalid, err, "the release's archive is damaged")
		}
		name := programName(path.Base(h.Name))
		if name == "" || h.Typeflag != tar.TypeReg || h.Size > maxRelease {
			continue
		}
		out, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
		if err != nil {
			return err
		}
		_, err = io.CopyN(out, t, h.Size)
		if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, gzip.ErrChecksum) {
			err = nacre.Wrap(nacre.CodeInvalid, err, "the release's archive is damaged")
		}
		if err = errors.Join(err, out.Close()); err != nil {
			return err
		}
		found++
	}
}
