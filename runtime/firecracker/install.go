package firecracker

import (
	"archive/tar"
	"cmp"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/internal/sparse"
)

// Names of what Install puts into its directory.
const (
	VMMName    = "firecracker"
	JailerName = "jailer"
	KernelName = "vmlinux"
)

// Release says where a release of Firecracker comes from.
type Release struct {
	// Source is the release's archive (.tgz), by path or https URL, or a directory that
	// holds the unpacked programs. "" is the release that this driver was made for, from
	// Firecracker's own page (see release.go).
	Source string
	// SHA256 of the archive, in hex. A URL demands one.
	SHA256 string
	Kernel string // path of the guest's kernel
	// Progress is told how much of a download is there; total is -1 when nobody knows.
	Progress func(done, total int64)
	// Client downloads; default http.DefaultClient, which goes by HTTPS_PROXY.
	Client *http.Client
	// AllowHoles takes a release with known holes.
	AllowHoles bool
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

// Install checks a release and puts it, with the kernel, into dir. A release that the
// driver would refuse is refused here. What was there before is replaced file by
// file, and kept when anything fails; running machines keep theirs.
func Install(ctx context.Context, dir string, from Release) (string, error) {
	if from.Source == "" {
		if from.SHA256 != "" {
			return "", nacre.Invalidf("sha256", "it is of an archive: say which, by --from")
		}
		from.Source, from.SHA256 = pinnedURL, pinnedSHA256
	}
	if err := checkKernel(from.Kernel); err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	tmp, err := os.MkdirTemp(dir, ".tmp-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	if err := gather(ctx, tmp, from); err != nil {
		return "", err
	}
	if err := sparse.Clone(from.Kernel, filepath.Join(tmp, KernelName), 0o444); err != nil {
		return "", fmt.Errorf("guest kernel: %w", err)
	}
	c, _ := Installed(tmp)
	r := &Runtime{cfg: c}
	r.cfg.AllowHoles = from.AllowHoles
	if err := r.checkPrograms(); err != nil {
		return "", err
	}
	for _, name := range []string{KernelName, JailerName, VMMName} {
		if err := os.Rename(filepath.Join(tmp, name), filepath.Join(dir, name)); err != nil {
			return "", err
		}
	}
	return r.version.String(), nil
}

// gather puts the two programs into dir.
func gather(ctx context.Context, dir string, from Release) error {
	if st, err := os.Stat(from.Source); err == nil && st.IsDir() {
		entries, err := os.ReadDir(from.Source)
		if err != nil {
			return err
		}
		found := 0
		for _, e := range entries {
			if name := programName(e.Name()); name != "" && e.Type().IsRegular() {
				if err := sparse.Clone(filepath.Join(from.Source, e.Name()), filepath.Join(dir, name), 0o755); err != nil {
					return err
				}
				found++
			}
		}
		return foundBoth(found)
	}
	archive := from.Source
	if strings.Contains(from.Source, "://") {
		archive = filepath.Join(dir, "archive")
		if err := download(ctx, from, archive); err != nil {
			return err
		}
	}
	if err := checkArchive(archive, from); err != nil {
		return err
	}
	return unpack(archive, dir)
}

func foundBoth(n int) error {
	if n != 2 {
		return nacre.Errorf(nacre.CodeInvalid, "the release holds %d of the two programs firecracker and jailer", n)
	}
	return nil
}

func checkArchive(path string, from Release) error {
	if from.SHA256 == "" {
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return err
	}
	if got := hex.EncodeToString(h.Sum(nil)); !strings.EqualFold(got, from.SHA256) {
		return nacre.Errorf(nacre.CodeConflict, "the archive's SHA-256 is %s, want %s; it is not the release that was meant", got, from.SHA256)
	}
	return nil
}

// maxRelease bounds a download and each program in it, in bytes.
const maxRelease = 256 << 20

func download(ctx context.Context, from Release, path string) (err error) {
	if !strings.HasPrefix(from.Source, "https://") {
		return nacre.Invalidf("from", "%q: want a path or an https URL", from.Source)
	}
	if from.SHA256 == "" {
		return nacre.Invalidf("sha256", "give the SHA-256 of what is downloaded; Firecracker publishes it beside each release")
	}
	defer func() {
		if err != nil {
			err = nacre.Wrap(nacre.CodeUnavailable, err, "the release could not be downloaded from "+from.Source+"; get it another way and give its path with --from")
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from.Source, nil)
	if err != nil {
		return err
	}
	client := cmp.Or(from.Client, http.DefaultClient)
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the server says %s", resp.Status)
	}
	if resp.ContentLength > maxRelease {
		return fmt.Errorf("it has %d bytes, which no release has", resp.ContentLength)
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	body := &counted{r: io.LimitReader(resp.Body, maxRelease), total: resp.ContentLength, tell: from.Progress}
	_, err = io.Copy(f, body)
	return errors.Join(err, f.Close())
}

// counted tells how much was read.
type counted struct {
	r           io.Reader
	done, total int64
	tell        func(done, total int64)
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.done += int64(n)
	if c.tell != nil {
		c.tell(c.done, c.total)
	}
	return n, err
}

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
